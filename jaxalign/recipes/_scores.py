"""From a batch to log-probabilities: of tokens, of whole answers, of pairs of answers.

Every recipe reads its numbers here, so that padding, packing, shared prompts and the two-row layout are understood in
one place.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import Batch
from jaxalign.models import ModelConfig

__all__ = [
    "PairScores",
    "pair_scores",
    "records_of_tokens",
    "score_targets",
    "sequence_scores",
    "sum_by_pair",
    "sum_by_sequence",
]

Params = Any


def score_targets(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    *,
    trunk: jax.Array | None = None,
    temperature: float = 1.0,
    attention_mask: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """log pi(target | its past) of every supervised token, in nats; 0 where the mask is False.

    Args:
      config, params: the model.
      batch: the rows.
      trunk: the frozen lower stack's activations ``[B, T, D]``, where they are at hand; that stack is then not run.
      temperature: the softmax temperature of the model scored.
      attention_mask: bool ``[B, T, T]``, and-ed with what tokens see otherwise.
      dropout_key: the step's key, for an adapter with dropout; None scores without dropout.

    Returns:
      ``[B, S]`` (``[B, R, S]`` for the two-row layout), at least float32.
    """
    hidden = _hidden(config, params, batch, trunk, dropout_key, attention_mask)
    log_probs = models.target_log_probs(
        config, params, hidden, batch.source_index, batch.targets, temperature=temperature
    )
    return jnp.where(batch.target_mask, log_probs, 0.0)


def sequence_scores(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    *,
    trunk: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """The score of every sequence, read at its last supervised token: the EOS of a finished answer.

    Args:
      config, params: a model with one label.
      batch: the rows.
      trunk, dropout_key: as in :func:`score_targets`.

    Returns:
      float32 ``[B, Q]``, unnormalised; 0 in slots without a sequence.
    """
    hidden = _hidden(config, params, batch, trunk, dropout_key)
    column, found = _last_columns(batch)
    if batch.tokens.ndim == 2:
        last = models.take_tokens(hidden, column)
    else:  # of the rows of a pair, each column's own
        line, column = jnp.divmod(column, batch.tokens.shape[-1])
        lines = jnp.arange(batch.tokens.shape[1])
        of_line = models.take_tokens(
            hidden, jnp.broadcast_to(column[:, None], (len(column), len(lines), column.shape[1]))
        )
        last = jnp.sum(jnp.where((line[:, None] == lines[:, None])[..., None], of_line, 0), axis=1)
    return jnp.where(found, models.score(config, params, last)[..., 0], 0.0)


def _hidden(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    trunk: jax.Array | None,
    dropout_key: jax.Array | None,
    attention_mask: jax.Array | None = None,
) -> jax.Array:
    return models.apply(
        config,
        params,
        batch.tokens,
        positions=batch.positions,
        example=batch.example,
        branch=batch.branch if batch.branched else None,
        attention_mask=attention_mask,
        trunk=trunk,
        dropout_keys=_dropout_keys(config, batch, dropout_key),
    )


def _last_columns(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(column in ``[R T]`` of every sequence's last supervised token, whether it has one), each ``[B, Q]``.

    The token is found from its source: in the same row and example, one position on, in the source's branch or, after a
    shared prompt, in any. Where several answers begin with the same token any of theirs will do: as long as an answer
    is no longer than that, they see the same.
    """
    rows, length = batch.tokens.shape[0], batch.tokens.shape[-1]

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(rows, -1)

    line = jnp.arange(flat(batch.tokens).shape[1]) // length
    slots = jnp.arange(batch.sequence_mask.shape[-1])
    owned = (flat(batch.target_sequence)[:, None] == slots[:, None]) & flat(batch.target_mask)[:, None]  # [B, Q, R S]
    places = jnp.arange(owned.shape[-1])
    target = jnp.max(jnp.where(owned, places, -1), axis=-1)  # [B, Q]
    found, target = target >= 0, jnp.maximum(target, 0)
    source_line = target // batch.targets.shape[-1]
    source = jnp.take_along_axis(flat(batch.source_index), target, axis=1) + source_line * length

    def of_source(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(flat(x), source, axis=1)[..., None]

    branch = of_source(batch.branch)
    matches = (
        (line == source_line[..., None])
        & (flat(batch.example)[:, None] == of_source(batch.example))
        & (flat(batch.positions)[:, None] == of_source(batch.positions) + 1)
        & (flat(batch.tokens)[:, None] == jnp.take_along_axis(flat(batch.targets), target, axis=1)[..., None])
        & ((branch == 0) | (flat(batch.branch)[:, None] == branch))
    )
    return jnp.argmax(matches, axis=-1), found


def _dropout_keys(config: ModelConfig, batch: Batch, key: jax.Array | None) -> jax.Array | None:
    """A key a token, from what the token is: its record, its branch, its position. So neither micro-batches nor packing
    nor the layout of pairs change a draw."""
    if key is None or config.lora is None or not config.lora.dropout:
        return None
    records = records_of_tokens(batch)
    places = batch.branch * config.max_positions + batch.positions

    def one(record: jax.Array, place: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, record), place)

    return jnp.vectorize(one, signature="(),()->()")(records, places)


def records_of_tokens(batch: Batch) -> jax.Array:
    """The record of every token, int32 ``[..., T]``; of padding, the row's first."""
    number = jnp.maximum(batch.example - 1, 0)
    return jnp.take_along_axis(batch.record_ids, number.reshape(number.shape[0], -1), axis=1).reshape(number.shape)


def sum_by_sequence(batch: Batch, values: jax.Array) -> jax.Array:
    """Sum of per-token ``values`` over each answer's tokens.

    ``values``: ``[B, S]`` or ``[B, R, S]``. Returns ``[B, Q]``: one sum a sequence slot, the two rows of a pair added.
    """
    slots = jnp.arange(batch.sequence_mask.shape[-1])
    owned = (batch.target_sequence[..., None, :] == slots[:, None]) & batch.target_mask[..., None, :]
    # A masked sum, not a matrix product with a one-hot: products lose bits on accelerators' fast float32 units.
    sums = jnp.sum(jnp.where(owned, values[..., None, :], 0), axis=-1)
    return sums if sums.ndim == 2 else sums.sum(axis=1)


def sum_by_pair(batch: Batch, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(chosen, rejected) sums of per-token ``values``: two arrays ``[B, P]``."""
    by_sequence = sum_by_sequence(batch, values)
    chosen = jnp.take_along_axis(by_sequence, batch.pairs[..., 0], axis=1)
    rejected = jnp.take_along_axis(by_sequence, batch.pairs[..., 1], axis=1)
    return chosen, rejected


@dataclass(frozen=True)
class PairScores:
    """What a preference loss sees: both answers' summed log-probabilities under both models, ``[B, P]`` each, nats."""

    policy_chosen: jax.Array
    policy_rejected: jax.Array
    reference_chosen: jax.Array
    reference_rejected: jax.Array
    chosen_tokens: jax.Array
    rejected_tokens: jax.Array
    mask: jax.Array

    @property
    def four(self) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The four arrays in the order every pair loss takes them."""
        return self.policy_chosen, self.policy_rejected, self.reference_chosen, self.reference_rejected

    @property
    def chosen_log_ratio(self) -> jax.Array:
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_log_ratio(self) -> jax.Array:
        return self.policy_rejected - self.reference_rejected

    def averaged(self) -> "PairScores":
        """The same scores a token: each sum divided by its answer's length."""
        chosen, rejected = jnp.maximum(self.chosen_tokens, 1), jnp.maximum(self.rejected_tokens, 1)
        return PairScores(
            self.policy_chosen / chosen,
            self.policy_rejected / rejected,
            self.reference_chosen / chosen,
            self.reference_rejected / rejected,
            self.chosen_tokens,
            self.rejected_tokens,
            self.mask,
        )


def pair_scores(
    batch: Batch, policy: jax.Array, reference: jax.Array | None, *, length_desensitised: float | None = None
) -> PairScores:
    """Sum token log-probabilities into pairs.

    Args:
      policy, reference: ``[B, S]`` (or ``[B, R, S]``) log-probabilities of the targets; ``reference=None`` stands for
        a loss that needs no reference (its scores are then zeros, never read).
      length_desensitised: LD-DPO's alpha in [0, 1]: the tokens of an answer past the shorter answer's length count
        with this weight (Liu et al. 2024, arXiv 2409.06411); None counts every token fully.
    """
    ones = jnp.where(batch.target_mask, 1.0, 0.0)
    chosen_tokens, rejected_tokens = sum_by_pair(batch, ones)
    if reference is None:
        reference = jnp.zeros_like(policy)
    if length_desensitised is None:
        policy_pair, reference_pair = sum_by_pair(batch, policy), sum_by_pair(batch, reference)
    else:
        weights = _length_weights(batch, jnp.minimum(chosen_tokens, rejected_tokens), length_desensitised)
        policy_pair, reference_pair = _weighted(batch, policy, weights), _weighted(batch, reference, weights)
    return PairScores(*policy_pair, *reference_pair, chosen_tokens, rejected_tokens, batch.pair_mask)


def _rank_in_sequence(batch: Batch) -> jax.Array:
    """Index of every target inside its own answer, ``[..., S]``."""
    same = batch.target_sequence[..., :, None] == batch.target_sequence[..., None, :]
    before = jnp.tril(jnp.ones(same.shape[-2:], bool), -1)
    return jnp.sum(same & before & batch.target_mask[..., None, :], axis=-1)


def _length_weights(batch: Batch, shorter: jax.Array, alpha: float) -> jax.Array:
    """``[B, P, (R,) S]``: 1 up to the pair's shorter length, alpha beyond it."""
    rank = jnp.expand_dims(_rank_in_sequence(batch), 1)
    limit = shorter.astype(rank.dtype).reshape(shorter.shape + (1,) * (rank.ndim - 2))
    return losses.length_desensitised_weights(rank, limit, alpha=alpha)


def _weighted(batch: Batch, values: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    slots = jnp.expand_dims(batch.target_sequence, 1)
    kept = jnp.expand_dims(jnp.where(batch.target_mask, values, 0), 1) * weights

    def side(index: int) -> jax.Array:
        owner = batch.pairs[..., index].reshape(batch.pairs.shape[:2] + (1,) * (slots.ndim - 2))
        own = jnp.where(slots == owner, kept, 0)
        return own.sum(axis=tuple(range(2, own.ndim)))

    return side(0), side(1)
