"""The sampler's device half: prompts are staged, rows take them over, and one loop decodes all rows together.

Rows are refilled while others are in the middle of their responses, so their tokens do not start at one step. Their
keys and values still go to *one* column a step: the response's columns are a ring, written at ``step`` modulo its
width, and a row sees as many of the latest columns as it has tokens. A column of its own for each row would be a
scatter; this is the slice update of a plain padded batch, and no column is ever lost to a hole.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxalign import models
from jaxalign.models import Cache, ModelConfig
from jaxalign.sampling._logits import next_token, uniforms

Params = dict[str, Any]
# Attention scores of one head that a prefill may hold at once; beyond them prompts are computed one after the other.
PREFILL_SCORES = 2**22
# Of Rows, what has its rows on the second axis.
STEP_MAJOR = ("tokens", "log_probs")


@dataclass(frozen=True)
class Plan:
    """What the programs are compiled for; everything else about a request is data."""

    steps: int
    """N, tokens of the longest response."""
    greedy: bool
    top_k: int
    top_p: bool
    min_p: bool
    cache_dtype: str | None

    @property
    def ring(self) -> int:
        """W, columns of a response: keys and values of its last token are never needed."""
        return self.steps - 1


class Controls(NamedTuple):
    """Traced settings of a call: changing them compiles nothing."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    stop_tokens: jax.Array


class Staged(NamedTuple):
    """U prompts computed and waiting for rows; each may be taken by any number of them."""

    hidden: jax.Array
    """``[U, D]``, of each prompt's last token."""
    cache: Cache
    """Their own columns alone, T of them, right-padded."""


class Fresh(NamedTuple):
    """What rows take over; entries of rows that stay as they are carry no meaning. Host arrays, all ``[R]``."""

    source: Any
    """int32, the staged prompt; -1 = the row stays."""
    lengths: Any
    """int32, the prompt's own tokens."""
    limits: Any
    """int32, tokens the response may have."""
    seeds: Any
    """uint32."""
    samples: Any
    """int32."""


class Rows(NamedTuple):
    """R responses under way. Columns of the cache: ``[prefix p | ring W | own prompt, right-padded, T]``."""

    step: jax.Array
    """int32 scalar: decoding steps since the rows were made."""
    cache: Cache
    hidden: jax.Array
    """``[R, D]``: what the next token is drawn from."""
    lengths: jax.Array
    limits: jax.Array
    seeds: jax.Array
    samples: jax.Array
    emitted: jax.Array
    """int32 ``[R]``, tokens so far."""
    done: jax.Array
    """bool ``[R]``: the row decodes nothing; true also of rows that never had a prompt."""
    finished: jax.Array
    """bool ``[R]``: it ended with a stop token."""
    tokens: jax.Array
    """int32 ``[N, R]``: a row's token i lies at its first step + i, modulo N."""
    log_probs: jax.Array
    """float32 ``[N, R]``, likewise."""

    def spread(self) -> "Rows":
        """The rows over the ambient mesh's ``data`` and ``fsdp`` axes, each with its cache; as they are without one."""
        laid: dict[str, Any] = {name: models.constrain_rows(getattr(self, name), axis=1) for name in STEP_MAJOR}
        for name in self._fields:
            if name != "step" and name not in STEP_MAJOR:
                laid[name] = jax.tree.map(models.constrain_rows, getattr(self, name))
        return self._replace(**laid)


@functools.partial(jax.jit, static_argnames="config")
def unstack(config: ModelConfig, params: Params) -> Params:
    """``models.unstack``, compiled."""
    return models.unstack(config, params)


@functools.partial(jax.jit, static_argnames=("config", "cache_dtype"))
def prefill_prefix(config: ModelConfig, cache_dtype: str | None, params: Params, tokens: jax.Array) -> Cache:
    """Keys and values of the prefix common to all prompts, batch 1; tokens int ``[1, p]``, p may be 0."""
    length = tokens.shape[1]
    cache = models.init_cache(config, 1, length, cache_dtype)
    if not length:
        return cache
    index = jnp.arange(length)
    visible = (index <= index[:, None])[None]
    return models.extend(config, params, tokens, cache, column=0, positions=index[None], visible=visible)[1]


@functools.partial(jax.jit, static_argnames="config")
def stage(config: ModelConfig, params: Params, prefix: Cache, tokens: jax.Array, lengths: jax.Array) -> Staged:
    """Compute U prompts behind the prefix: tokens int32 ``[U, T]``, right-padded; lengths int32 ``[U]``.

    Long ones a few at a time: attention's scores are as large as the square of the length.
    """
    prompts, width = tokens.shape
    shards = models.row_shards()
    together = max(1, PREFILL_SCORES // (width * (prefix.columns + width)) // shards) * shards
    if prompts <= together:
        return _stage(config, params, prefix, tokens, lengths)
    groups = -(-prompts // together)
    missing = groups * together - prompts
    tokens = jnp.pad(tokens, ((0, missing), (0, 0))).reshape(groups, together, width)
    lengths = jnp.pad(lengths, (0, missing), constant_values=1).reshape(groups, together)
    staged = jax.lax.map(lambda group: _stage(config, params, prefix, *group), (tokens, lengths))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:prompts], staged)


def _stage(config: ModelConfig, params: Params, prefix: Cache, tokens: jax.Array, lengths: jax.Array) -> Staged:
    prompts, width = tokens.shape
    start = prefix.columns
    cache = prefix.broadcast(prompts).widen(width)
    index = jnp.arange(width)
    visible = jnp.arange(start + width) <= (start + index)[:, None]
    hidden, cache = models.extend(
        config,
        params,
        tokens,
        cache,
        column=start,
        # Padding comes after the prompt, so no prompt token sees it; its positions are clamped into the model's range.
        positions=jnp.broadcast_to(jnp.minimum(start + index, config.max_positions - 1), (prompts, width)),
        visible=jnp.broadcast_to(visible, (prompts, *visible.shape)),
    )
    return Staged(hidden[jnp.arange(prompts), lengths - 1], cache.from_column(start))


@functools.partial(jax.jit, static_argnames=("plan", "rows"))
def empty(plan: Plan, prefix: Cache, staged: Staged, rows: int) -> Rows:
    """R rows without a prompt, shaped to take ``staged`` ones."""

    def zeros(dtype: Any) -> jax.Array:
        return jnp.zeros(rows, dtype)

    return Rows(
        step=jnp.int32(0),
        cache=prefix.broadcast(rows).widen(plan.ring + staged.cache.columns),
        hidden=jnp.zeros((rows, staged.hidden.shape[1]), staged.hidden.dtype),
        lengths=jnp.ones(rows, jnp.int32),
        limits=zeros(jnp.int32),
        seeds=zeros(jnp.uint32),
        samples=zeros(jnp.int32),
        emitted=zeros(jnp.int32),
        done=jnp.ones(rows, bool),
        finished=zeros(bool),
        tokens=jnp.zeros((plan.steps, rows), jnp.int32),
        log_probs=jnp.zeros((plan.steps, rows), jnp.float32),
    ).spread()


@functools.partial(jax.jit, static_argnames="columns")
def widen(rows: Rows, columns: int) -> Rows:
    """Rows with room for prompts of ``columns`` more tokens."""
    return rows._replace(cache=rows.cache.widen(columns)).spread()


@functools.partial(jax.jit, donate_argnames="rows")
def refill(rows: Rows, staged: Staged, fresh: Fresh) -> Rows:
    """Rows with a source take that staged prompt over; the cache's last columns are as many as ``staged`` has."""
    taken = fresh.source >= 0
    own = rows.cache.columns - staged.cache.columns

    def take(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(taken.reshape(-1, *(1,) * (old.ndim - 1)), new.astype(old.dtype), old)

    columns = jax.tree.map(lambda old, new: take(old, new[fresh.source]), rows.cache.from_column(own), staged.cache)
    return rows._replace(
        cache=rows.cache.replace_from(own, columns),
        hidden=take(rows.hidden, staged.hidden[fresh.source]),
        lengths=take(rows.lengths, fresh.lengths),
        limits=take(rows.limits, fresh.limits),
        seeds=take(rows.seeds, fresh.seeds),
        samples=take(rows.samples, fresh.samples),
        emitted=jnp.where(taken, 0, rows.emitted),
        done=rows.done & ~taken,
        finished=rows.finished & ~taken,
    ).spread()


@functools.partial(jax.jit, static_argnames=("config", "plan", "prefix"), donate_argnames="rows")
def decode(
    config: ModelConfig,
    plan: Plan,
    prefix: int,
    params: Params,
    rows: Rows,
    controls: Controls,
    free: jax.Array,
    wanted: jax.Array,
    most: jax.Array,
) -> Rows:
    """Decode until ``wanted`` rows are done, for ``most`` steps at most.

    Args:
      prefix: p, columns of the common prefix.
      free: bool ``[R]``: rows that decode no more, whatever they hold (one that met a stop string).
      wanted, most: int scalars.
    """
    ring = jnp.arange(plan.ring)
    own = jnp.arange(rows.cache.columns - prefix - plan.ring)
    in_prompt = own < rows.lengths[:, None]
    always = jnp.ones((len(rows.lengths), prefix), bool)
    end = rows.step + most

    def unfinished(rows: Rows) -> jax.Array:
        return (rows.done.sum() < wanted) & (rows.step < end)

    def one(rows: Rows) -> Rows:
        # Vocabulary-major logits [V, R]: see _logits.
        logits = models.unembed(config, params, rows.hidden, vocabulary_first=True)
        token, log_prob = next_token(
            logits,
            uniforms(controls.key, rows.seeds, rows.samples, rows.emitted),
            controls.temperature,
            greedy=plan.greedy,
            top_k=plan.top_k,
            top_p=controls.top_p if plan.top_p else 1.0,
            min_p=controls.min_p if plan.min_p else 0.0,
        )
        stopped = (token[:, None] == controls.stop_tokens).any(-1) & ~rows.done
        emitted = rows.emitted + ~rows.done
        slot = rows.step % plan.steps
        # A row that is done keeps its tokens until the host has read them.
        rows = rows._replace(
            emitted=emitted,
            tokens=rows.tokens.at[slot].set(jnp.where(rows.done, rows.tokens[slot], token)),
            log_probs=rows.log_probs.at[slot].set(jnp.where(rows.done, rows.log_probs[slot], log_prob)),
            finished=rows.finished | stopped,
            done=rows.done | stopped | (emitted >= rows.limits),
        )
        if plan.ring:
            seen = (rows.step - ring) % plan.ring < emitted[:, None]
            hidden, cache = models.extend(
                config,
                params,
                token[:, None],
                rows.cache,
                column=prefix + rows.step % plan.ring,
                positions=(prefix + rows.lengths + emitted - 1)[:, None],
                visible=jnp.concatenate([always, seen, in_prompt], 1)[:, None],
            )
            rows = rows._replace(hidden=hidden[:, 0], cache=cache)
        return rows._replace(step=rows.step + 1).spread()

    return jax.lax.while_loop(unfinished, one, rows._replace(done=rows.done | free))
