"""The sampler: one jitted program (prefill, then a while loop) and the host code that feeds it."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models import Cache, ModelConfig
from jaxalign.sampling._logits import next_token, uniforms
from jaxalign.sampling._requests import Chunk, check_prompts, chunks, common_prefix, group_size, prefix_bucket
from jaxalign.sampling._samples import Samples

Params = dict[str, Any]
OnChunk = Callable[[int, int], None]


@dataclass(frozen=True)
class _Plan:
    """What the program is compiled for; everything else about a request is data."""

    steps: int
    group: int
    greedy: bool
    top_k: int
    top_p: bool
    min_p: bool
    cache_dtype: str | None


class _Controls(NamedTuple):
    """Traced settings of a request: changing them compiles nothing."""

    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    stop_tokens: jax.Array
    pad_token: jax.Array


class _Responses(NamedTuple):
    """``Samples`` on the device, rows last while the loop fills them."""

    tokens: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    finished: jax.Array


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: Sequence[int] = (),
    samples_per_prompt: int = 1,
    batch_size: int = 64,
    pad_token: int = 0,
    share_prefix: bool = True,
    cache_dtype: str | None = None,
    on_chunk: OnChunk | None = None,
) -> Samples:
    """Sample responses to ragged prompts: y_t ~ softmax(logits / temperature), truncated by top-k, top-p, min-p.

    A sample depends on (params, prompt, key, its prompt index, its sample index) and the sampling settings alone: batch
    size, the other prompts, padding and the shared prefix change nothing but float rounding.

    ``log_probs`` are those of softmax(logits / temperature) *before* truncation: what a loss computed at the same
    temperature gives for the same tokens. With temperature 0 (greedy) they are at temperature 1.

    Programs are compiled per batch size, length bucket (8, 16, 24, 32, 48, 64, 96 ...), ``max_new_tokens``,
    ``samples_per_prompt`` and ``top_k``; temperature, top-p, min-p and the ids of stop tokens are data.

    Args:
        config: the model.
        params: its parameters, or what ``models.unstack`` made of them (saves that step when called often).
        prompts: P lists of token ids, each of at least one token.
        key: a PRNG key.
        max_new_tokens: N, the longest response.
        temperature: at least 0; 0 is greedy.
        top_k: only the k most probable tokens compete; 0 is off.
        top_p: in (0, 1], nucleus mass; 1 is off.
        min_p: in [0, 1), least probability relative to the most probable token's; 0 is off.
        stop_tokens: ids that end a response (the EOS); the stop token belongs to the response.
        samples_per_prompt: k responses a prompt, from one prefill.
        batch_size: rows decoded together. More rows use each weight read better and take more cache memory.
        pad_token: the id in ``Samples.tokens`` after a response's end; it carries no meaning, the mask does.
        share_prefix: compute the keys and values of a prefix common to all prompts (a chat template) once.
        cache_dtype: of keys and values; the compute dtype by default.
        on_chunk: called as ``on_chunk(done, total)``, in responses, after every chunk of ``batch_size`` rows.

    Returns:
        ``Samples`` of B = P k rows, prompt-major, as host arrays.

    Raises:
        InputError: an empty prompt, an id outside the vocabulary, prompt + ``max_new_tokens`` over
            ``config.max_positions``, or a setting out of its range; the message names the prompt or the setting.
        FloatingPointError: the model gave log-probs that are not finite.
    """
    _check_settings(
        config, max_new_tokens, temperature, top_k, top_p, min_p, stop_tokens, samples_per_prompt, batch_size, pad_token
    )
    checked = check_prompts(prompts, config.vocab_size, config.max_positions - max_new_tokens)
    plan = _Plan(
        steps=max_new_tokens,
        group=group_size(samples_per_prompt, batch_size),
        greedy=temperature == 0,
        top_k=top_k if top_k < config.vocab_size else 0,
        top_p=top_p < 1,
        min_p=min_p > 0,
        cache_dtype=cache_dtype,
    )
    controls = _Controls(
        temperature=jnp.float32(temperature or 1.0),
        top_p=jnp.float32(top_p),
        min_p=jnp.float32(min_p),
        stop_tokens=jnp.asarray(stop_tokens, jnp.int32).reshape(-1),
        pad_token=jnp.int32(pad_token),
    )
    prepared = params if "blocks" in params else _unstack(config, params)
    length = prefix_bucket(common_prefix(checked)) if share_prefix and len(checked) > 1 else 0
    prefix = _prefill_prefix(config, cache_dtype, prepared, checked[0][None, :length])
    own = [prompt[length:] for prompt in checked]

    total = len(prompts) * samples_per_prompt
    samples = Samples(
        tokens=np.full((total, max_new_tokens), pad_token, np.int32),
        mask=np.zeros((total, max_new_tokens), bool),
        log_probs=np.zeros((total, max_new_tokens), np.float32),
        finished=np.zeros(total, bool),
    )
    done, key = 0, _threefry(key)
    for chunk in chunks(own, samples_per_prompt, batch_size):
        part, _ = jax.device_get(_sample_chunk(config, plan, prepared, prefix, chunk, key, controls))
        rows = (chunk.prompt_index * samples_per_prompt + chunk.sample_index)[chunk.live]
        for name in _Responses._fields:
            getattr(samples, name)[rows] = getattr(part, name)[chunk.live]
        done += len(rows)
        if on_chunk is not None:
            on_chunk(done, total)
    bad = np.flatnonzero(~np.isfinite(samples.log_probs).all(-1))
    if bad.size:
        raise FloatingPointError(f"the model's log-probs for prompts[{bad[0] // samples_per_prompt}] are not finite")
    return samples


@functools.partial(jax.jit, static_argnames="config")
def _unstack(config: ModelConfig, params: Params) -> Params:
    return models.unstack(config, params)


@functools.partial(jax.jit, static_argnames=("config", "cache_dtype"))
def _prefill_prefix(config: ModelConfig, cache_dtype: str | None, params: Params, tokens: jax.Array) -> Cache:
    """Keys and values of the common prefix, batch 1; tokens int ``[1, p]``, p may be 0."""
    length = tokens.shape[1]
    cache = models.init_cache(config, 1, length, cache_dtype)
    if not length:
        return cache
    index = jnp.arange(length)
    visible = (index <= index[:, None])[None]
    return models.extend(config, params, tokens, cache, column=0, positions=index[None], visible=visible)[1]


@functools.partial(jax.jit, static_argnames=("config", "plan"))
def _sample_chunk(
    config: ModelConfig,
    plan: _Plan,
    params: Params,
    prefix: Cache,
    chunk: Chunk,
    key: jax.Array,
    controls: _Controls,
) -> tuple[_Responses, jax.Array]:
    """Prefill U prompts, then decode their R = U G rows until all have stopped.

    Columns of the cache: ``[prefix p | own prompt tokens, right-padded, T | response N - 1]``; the response's columns
    are the same for all rows, its positions each row's own. The last token's keys and values are never needed.

    Returns:
        (responses of R rows, int32 scalar: the decoding steps that ran).
    """
    own_columns, response = chunk.tokens.shape[1], prefix.columns + chunk.tokens.shape[1]
    hidden, cache = _prefill(config, params, prefix, chunk)
    hidden = jnp.repeat(hidden, plan.group, 0)
    cache = cache.repeat(plan.group).widen(plan.steps - 1)
    lengths = jnp.repeat(chunk.lengths, plan.group)
    rows = lengths.shape[0]
    columns = jnp.arange(response + plan.steps - 1)
    in_prompt = columns < (response - own_columns + lengths)[:, None]
    uniform = uniforms(key, chunk.prompt_index, chunk.sample_index, plan.steps)

    def sample(
        step: jax.Array | int, hidden: jax.Array, done: jax.Array, out: _Responses
    ) -> tuple[jax.Array, _Responses]:
        """Draw token ``step`` of every row and record it; ``out`` is step-major, ``[N, R]``."""
        # Vocabulary-major logits [V, R]: see _logits.
        logits = models.unembed(config, params, hidden, vocabulary_first=True)
        token, log_prob = next_token(
            logits,
            uniform[step],
            controls.temperature,
            greedy=plan.greedy,
            top_k=plan.top_k,
            top_p=controls.top_p if plan.top_p else 1.0,
            min_p=controls.min_p if plan.min_p else 0.0,
        )
        token = jnp.where(done, controls.pad_token, token)
        stopped = (token[:, None] == controls.stop_tokens).any(-1) & ~done
        return token, _Responses(
            tokens=out.tokens.at[step].set(token),
            mask=out.mask.at[step].set(~done),
            log_probs=out.log_probs.at[step].set(jnp.where(done, 0.0, log_prob)),
            finished=out.finished | stopped,
        )

    State = tuple[jax.Array, jax.Array, Cache, _Responses]

    def unfinished(state: State) -> jax.Array:
        step, _, _, out = state
        return (step < plan.steps) & ~(out.finished | ~chunk.live).all()

    def decode(state: State) -> State:
        step, token, cache, out = state
        column = response + step - 1
        visible = in_prompt | ((columns >= response) & (columns <= column))
        positions = (response - own_columns + lengths + step - 1)[:, None]
        hidden, cache = models.extend(
            config, params, token[:, None], cache, column=column, positions=positions, visible=visible[:, None]
        )
        token, out = sample(step, hidden[:, 0], out.finished | ~chunk.live, out)
        return step + 1, token, cache, out

    out = _Responses(
        tokens=jnp.full((plan.steps, rows), controls.pad_token, jnp.int32),
        mask=jnp.zeros((plan.steps, rows), bool),
        log_probs=jnp.zeros((plan.steps, rows), jnp.float32),
        finished=jnp.zeros(rows, bool),
    )
    token, out = sample(0, hidden, ~chunk.live, out)
    steps, _, _, out = jax.lax.while_loop(unfinished, decode, (jnp.int32(1), token, cache, out))
    return _Responses(out.tokens.T, out.mask.T, out.log_probs.T, out.finished), steps


def _prefill(config: ModelConfig, params: Params, prefix: Cache, chunk: Chunk) -> tuple[jax.Array, Cache]:
    """Hidden state of each prompt's last token ``[U, D]``, and the cache of prefix and prompts, p + T columns."""
    prompts, own_columns = chunk.tokens.shape
    start = prefix.columns
    cache = prefix.broadcast(prompts).widen(own_columns)
    index = jnp.arange(own_columns)
    visible = jnp.arange(start + own_columns) <= (start + index)[:, None]
    hidden, cache = models.extend(
        config,
        params,
        chunk.tokens,
        cache,
        column=start,
        # Padding comes after the prompt, so no prompt token sees it; its positions are clamped into the model's range.
        positions=jnp.broadcast_to(jnp.minimum(start + index, config.max_positions - 1), (prompts, own_columns)),
        visible=jnp.broadcast_to(visible, (prompts, *visible.shape)),
    )
    return hidden[jnp.arange(prompts), chunk.lengths - 1], cache


def _threefry(key: jax.Array) -> jax.Array:
    """A typed threefry key: other generators may give a row different bits in a different batch."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def _check_settings(
    config: ModelConfig,
    max_new_tokens: int,
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
        ("max_new_tokens", max_new_tokens, "at least 1", max_new_tokens >= 1),
        ("temperature", temperature, "finite and at least 0", temperature >= 0 and math.isfinite(temperature)),
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
