"""The loss of a reward model as a train step sees it."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import Batch
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Objective, Params, frozen_trunk
from jaxalign.recipes._scores import sequence_scores
from jaxalign.training import Metrics, Terms

__all__ = ["RewardObjective", "reward_objective"]


@dataclass(frozen=True, kw_only=True)
class RewardObjective:
    """What a reward model learns of preferences."""

    reward_loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """Every ordered pair of answers by itself, or every prompt's ranking as a whole (of two answers: the same)."""
    margin: bool = False
    """Ask for the record's ``margin`` between the rewards of a pair."""
    centering: float = 0.0
    """Weight of (r_w + r_l)^2, which draws rewards towards a mean of 0; 0.01 is usual."""

    def __post_init__(self) -> None:
        if self.centering < 0:
            raise InputError(f"--centering: must be at least 0, is {self.centering}")
        if self.margin and self.reward_loss != "bradley_terry":
            raise InputError("--margin: a margin is of a pair; --reward-loss plackett_luce reads none")


def reward_objective(config: ModelConfig, objective: RewardObjective) -> Objective:
    """Make the pure loss of a reward model; r is the score of an answer's last token.

        bradley_terry   mean over pairs of -log sigmoid(r_w - r_l - margin)
        plackett_luce   mean over prompts of -sum_i log (exp r_i / sum_{j = i or below i} exp r_j)
        + centering * mean over pairs of (r_w + r_l)^2

    Args:
      config: a model with one label, as ``models.freeze`` returned it.
      objective: loss and options.

    Raises:
      InputError: a language model, or several labels.
    """
    if config.labels != 1:
        raise InputError(f"a reward model has one score, this model has {config.labels} labels")

    def loss(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, extra: dict[str, Any]
    ) -> tuple[Terms, Metrics]:
        del extra
        scores = sequence_scores(
            config,
            models.combine(params, frozen["base"]),
            batch,
            trunk=frozen_trunk(config, params, frozen, batch),
            dropout_key=key,
        )
        chosen, rejected = (jnp.take_along_axis(scores, batch.pairs[..., side], axis=1) for side in (0, 1))
        mask = batch.pair_mask
        pairs = jnp.sum(mask).astype(jnp.float32)

        def total(values: jax.Array) -> jax.Array:
            return losses.masked_sum(values, mask)

        if objective.reward_loss == "bradley_terry":
            margin = _margin(batch) if objective.margin else jnp.zeros_like(chosen)
            value = total(losses.bradley_terry(chosen, rejected, margin=margin))
            terms: Terms = {"bradley_terry": (value, pairs, 1.0)}
        else:
            rankings = jnp.sum(batch.record_ids >= 0).astype(jnp.float32)
            value = jnp.sum(losses.partial_plackett_luce(scores, _beats(batch)))
            terms = {"plackett_luce": (value, rankings, 1.0)}
        if objective.centering:
            terms["centering"] = (total(losses.reward_centering(chosen, rejected)), pairs, objective.centering)
        chosen, rejected = jax.lax.stop_gradient((chosen, rejected))
        metrics: Metrics = {
            "rewards/chosen": (total(chosen), pairs),
            "rewards/rejected": (total(rejected), pairs),
            "rewards/margin": (total(chosen - rejected), pairs),
            "rewards/accuracy": (total((chosen > rejected).astype(jnp.float32)), pairs),
        }
        return terms, metrics

    return Objective(loss=loss)


def _margin(batch: Batch) -> jax.Array:
    if "margin" not in batch.extras:
        raise InputError("--margin: the records have no field 'margin'")
    return batch.extras["margin"]


def _beats(batch: Batch) -> jax.Array:
    """bool ``[B, Q, Q]``: whether some pair prefers slot i to slot j."""
    slots = jnp.arange(batch.sequence_mask.shape[-1])
    winner, loser = (batch.pairs[..., side, None] == slots for side in (0, 1))  # [B, P, Q]
    both = winner[..., :, None] & loser[..., None, :] & batch.pair_mask[..., None, None]
    return both.any(axis=1)
