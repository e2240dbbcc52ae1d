"""The sampler's front: what may be asked for, checked, and handed to the engine."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.sampling import _engine as engine
from jaxalign.sampling._requests import bucket, check_prompts, common_prefix, prefix_bucket, row_count
from jaxalign.sampling._samples import Samples
from jaxalign.sampling._schedule import Schedule, StopStrings, Work

Params = dict[str, Any]
OnProgress = Callable[[int, int], None]


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    seeds: Sequence[int] | None = None,
    samples_per_prompt: int = 1,
    batch_size: int = 64,
    pad_token: int = 0,
    share_prefix: bool = True,
    refill: bool = True,
    cache_dtype: str | None = None,
    on_progress: OnProgress | None = None,
) -> Samples:
    """Sample responses to ragged prompts: y_t ~ softmax(logits / temperature), truncated by top-k, top-p, min-p.

    A sample depends on (params, prompt, key, its seed, its sample index) and the sampling settings alone: batch size,
    order, the other prompts, padding, refilling and the shared prefix change nothing but float rounding. A product of
    another number of rows is rounded otherwise: of 128 responses of 48 tokens of a small model that turned a token in 2
    in float32, in nearly all in bfloat16. Refilling rows of one number turned none in either.

    ``batch_size`` rows are decoded together; a row whose response has ended is given the next one that waits, so that
    short responses do not wait for long ones.

    ``log_probs`` are those of softmax(logits / temperature) *before* truncation: what a loss computed at the same
    temperature gives for the same tokens. With temperature 0 (greedy) they are at temperature 1.

    Under an ambient mesh (``jax.set_mesh``) rows, and their caches, are split over its ``data`` and ``fsdp`` axes.
    Along ``sequence`` its devices compute the same: a step decodes one token a row, there is nothing to split.

    Programs are compiled per number of rows, length bucket of prompts and of their common prefix (8, 16, 24, 32, 48,
    64, 96 ...), ``max_new_tokens`` (the bucket of the largest where there are many), ``top_k``, and which of the other
    truncations are on (the prefill per prompts computed together, too); temperature, top-p, min-p, seeds, each
    response's own limit and the ids of stop tokens are data.

    Args:
        config: the model.
        params: its parameters, or what ``models.unstack`` made of them (saves that step when called often).
        prompts: P lists of token ids, each of at least one token.
        key: a PRNG key.
        max_new_tokens: tokens a response may have, one number or one a prompt; N is the largest.
        temperature: at least 0; 0 is greedy.
        top_k: only the k most probable tokens compete; 0 is off.
        top_p: in (0, 1], nucleus mass; 1 is off.
        min_p: in [0, 1), least probability relative to the most probable token's; 0 is off.
        stop_tokens: ids that end a response (the EOS); the stop token belongs to the response.
        stop_strings: texts that end a response, too, right after the token that completes one; that token belongs to
            the response. The host looks for them every few steps.
        decode: token ids to text, needed for ``stop_strings``.
        seeds: one number in [0, 2^32) a prompt, in place of its index: equal prompts with equal seeds have equal
            samples, wherever they stand.
        samples_per_prompt: k responses a prompt, from one prefill.
        batch_size: rows decoded together, over all devices. More rows use each weight read better and take more cache
            memory.
        pad_token: the id in ``Samples.tokens`` after a response's end; it carries no meaning, the mask does.
        share_prefix: compute the keys and values of a prefix common to all prompts (a chat template) once.
        refill: give the rows of ended responses to waiting ones at once; False decodes batch after batch, each until
            its longest response has ended.
        cache_dtype: of keys and values; the compute dtype by default.
        on_progress: called as ``on_progress(done, total)``, in responses, when some have ended.

    Returns:
        ``Samples`` of B = P k rows, prompt-major, as host arrays.

    Raises:
        InputError: an empty prompt, an id outside the vocabulary, prompt + ``max_new_tokens`` over
            ``config.max_positions``, or a setting out of its range; the message names the prompt or the setting.
        FloatingPointError: the model gave log-probs that are not finite.
    """
    if len(prompts) == 0:
        raise InputError("generate: prompts is empty")
    limits = _per_prompt("max_new_tokens", max_new_tokens, len(prompts), 1, 2**31)
    chosen_seeds = _per_prompt("seeds", range(len(prompts)) if seeds is None else seeds, len(prompts), 0, 2**32)
    _check_settings(config, temperature, top_k, top_p, min_p, stop_tokens, samples_per_prompt, batch_size, pad_token)
    stop = _stop_strings(stop_strings, decode)
    checked = check_prompts(prompts, config.vocab_size, config.max_positions, limits)
    longest = int(limits.max())
    plan = engine.Plan(
        # The one number of a call is a shape; of many the largest differs from call to call, and they are data.
        steps=longest if np.ndim(max_new_tokens) == 0 else bucket(longest),
        greedy=temperature == 0,
        top_k=top_k if top_k < config.vocab_size else 0,
        top_p=top_p < 1,
        min_p=min_p > 0,
        cache_dtype=cache_dtype,
    )
    controls = engine.Controls(
        key=_threefry(key),
        temperature=jnp.float32(temperature or 1.0),
        top_p=jnp.float32(top_p),
        min_p=jnp.float32(min_p),
        # Filled up with what is no id: their number is a shape, too.
        stop_tokens=jnp.asarray([*stop_tokens, *[-1] * (bucket(len(stop_tokens)) - len(stop_tokens))], jnp.int32),
    )
    prepared = params if "blocks" in params else engine.unstack(config, params)
    length = prefix_bucket(common_prefix(checked)) if share_prefix and len(checked) > 1 else 0
    prefix = engine.prefill_prefix(config, cache_dtype, prepared, checked[0][None, :length])
    work = Work([prompt[length:] for prompt in checked], samples_per_prompt, limits, chosen_seeds.astype(np.uint32))
    samples = Samples(
        tokens=np.full((work.responses, longest), pad_token, np.int32),
        mask=np.zeros((work.responses, longest), bool),
        log_probs=np.zeros((work.responses, longest), np.float32),
        finished=np.zeros(work.responses, bool),
    )
    rows = row_count(work.responses, batch_size, models.row_shards())
    schedule = Schedule(config, plan, prepared, prefix, controls, work, rows)
    schedule.run(samples, refill=refill, stop=stop, on_progress=on_progress)
    bad = np.flatnonzero(~np.isfinite(samples.log_probs).all(-1))
    if bad.size:
        raise FloatingPointError(f"the model's log-probs for prompts[{bad[0] // samples_per_prompt}] are not finite")
    return samples


def _threefry(key: jax.Array) -> jax.Array:
    """A typed threefry key: other generators may give a row different bits in a different batch."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def _per_prompt(name: str, value: int | Sequence[int], prompts: int, least: int, below: int) -> np.ndarray:
    """One number for every prompt, int64 ``[P]``."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        raise InputError(f"generate: {name} must be integers, one for each prompt, is {value!r}")
    if numbers.ndim and len(numbers) != prompts:
        raise InputError(f"generate: {name} has {len(numbers)} numbers for {prompts} prompts")
    for index, number in enumerate(numbers.reshape(-1).tolist()):
        if not least <= number < below:
            place = f"{name}[{index}]" if numbers.ndim else name
            raise InputError(f"generate: {place} must be at least {least} and below {below}, is {number}")
    return np.broadcast_to(numbers, (prompts,))


def _stop_strings(strings: Sequence[str], decode: Callable[[Sequence[int]], str] | None) -> StopStrings | None:
    if isinstance(strings, str):
        raise InputError(f"generate: stop_strings must be a list of texts, is the text {strings!r}")
    if not strings:
        return None
    if decode is None:
        raise InputError("generate: stop_strings needs decode, which turns token ids to text")
    for index, string in enumerate(strings):
        if not string:
            raise InputError(f"generate: stop_strings[{index}] is empty: it would end every response at once")
    return StopStrings(tuple(strings), decode)


def _is_temperature(value: float) -> bool:
    return value == 0 or (value > 0 and math.isfinite(value) and float(np.float32(value)) > 0)


def _check_settings(
    config: ModelConfig,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    stop_tokens: Sequence[int],
    samples_per_prompt: int,
    batch_size: int,
    pad_token: int,
) -> None:
    for name, value, allowed, valid in (
        ("temperature", temperature, "finite and at least 0", _is_temperature(temperature)),
        ("top_k", top_k, "at least 0 (0 is off)", top_k >= 0),
        ("top_p", top_p, "in (0, 1]", 0 < top_p <= 1),
        ("min_p", min_p, "in [0, 1)", 0 <= min_p < 1),
        ("samples_per_prompt", samples_per_prompt, "at least 1", samples_per_prompt >= 1),
        ("batch_size", batch_size, "at least 1", batch_size >= 1),
        ("pad_token", pad_token, "an id of the vocabulary", 0 <= pad_token < config.vocab_size),
    ):
        if not valid:
            raise InputError(f"generate: {name} must be {allowed}, is {value}")
    for token in stop_tokens:
        if not 0 <= token < config.vocab_size:
            raise InputError(f"generate: stop_tokens: {token} is outside the vocabulary of {config.vocab_size} tokens")
