"""The loss of Chain of Hindsight and its baselines as a train step sees it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import Batch
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Objective, Params, frozen_trunk
from jaxalign.recipes._scores import records_of_tokens, score_targets
from jaxalign.training import Metrics, Terms

__all__ = ["HindsightObjective", "hindsight_objective"]

# Folded into a step's key for what is forgotten, and for the pretraining text's dropout; no record id is these.
FORGET, TEXT = 0x8000_0F0F, 0x8000_7E87


@dataclass(frozen=True, kw_only=True)
class HindsightObjective:
    """What is learnt of chains of feedback and outputs."""

    forget_min_ratio: float = 0.0
    """Forgetful causal mask: the least share of the past that is hidden, drawn for every sequence and step."""
    forget_max_ratio: float = 0.05
    """The largest; 0 = nothing is hidden. Training only."""
    pretraining_weight: float | None = None
    """Lambda, the weight of the pretraining text's loss; None = 1.5 (the paper's) where there is such text."""
    unlikelihood_weight: float | None = None
    """SFT-U's alpha: outputs below the best are made less likely, with this weight, instead of learnt."""

    def __post_init__(self) -> None:
        for name in ("forget_min_ratio", "forget_max_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')}: must be in [0, 1], is {getattr(self, name)}")
        if self.forget_min_ratio > self.forget_max_ratio:
            raise InputError(
                f"--forget-min-ratio: {self.forget_min_ratio} is above --forget-max-ratio {self.forget_max_ratio}"
            )
        for name in ("pretraining_weight", "unlikelihood_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')}: must be at least 0, is {value}")

    @property
    def pretraining_coefficient(self) -> float:
        """Lambda where there is pretraining text."""
        return 1.5 if self.pretraining_weight is None else self.pretraining_weight


def hindsight_objective(config: ModelConfig, objective: HindsightObjective) -> Objective:
    """Make the pure loss of Chain of Hindsight (Liu, Sferrazza and Abbeel 2023, arXiv 2302.02676, section 2).

        L = sum of -log pi(x_t | x_<t) over tokens of outputs / their number
          + lambda * the same over the tokens of pretraining text / their number                      nats a token

    Prompts and feedback are read, never learnt; each mean is over the whole global batch. With ``unlikelihood_weight``
    alpha (SFT-U) outputs below the best leave the first sum, and + alpha * mean over their tokens of -log(1 - pi) is
    added. The pretraining text is ``batch.pretraining``; without it there is no second term.

    The forgetful causal mask hides pairs of (query, key) in the chains, in all layers and heads alike, frozen layers
    included; the pretraining text and evaluation see everything. With ``forget_max_ratio`` 0 no mask is made at all.

    Args:
      config: the model, as ``models.freeze`` returned it.
      objective: the loss's options.
    """

    def scored(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        return score_targets(
            config,
            models.combine(params, frozen["base"]),
            batch,
            trunk=frozen_trunk(config, params, frozen, batch, attention_mask=mask),
            attention_mask=mask,
            dropout_key=key,
        )

    def terms_of(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, *, forget: bool
    ) -> tuple[Terms, Metrics]:
        mask = _forgetful(key, batch, objective) if forget else None
        log_probs = scored(params, frozen, batch, key, mask)
        negative = batch.extras.get("negative")
        if negative is None:
            negative = jnp.zeros_like(batch.target_mask)
        negative = negative & batch.target_mask

        def mean_nll(name: str, learnt: jax.Array, coefficient: float) -> Terms:
            values = losses.chain_of_hindsight(log_probs, learnt)
            return {name: (jnp.sum(values), jnp.sum(learnt).astype(values.dtype), coefficient)}

        alpha = objective.unlikelihood_weight
        if alpha is None:
            terms = mean_nll("feedback", batch.target_mask, 1.0)
        else:
            terms = mean_nll("feedback", batch.target_mask & ~negative, 1.0)
            # Where a token is not one to unlearn its log-prob is replaced first: log(1 - p) has no slope at p = 1.
            values = losses.unlikelihood(jnp.where(negative, log_probs, -1.0))
            weight = jnp.sum(negative).astype(values.dtype)
            terms["unlikelihood"] = (jnp.sum(jnp.where(negative, values, 0)), weight, alpha)
        nll = -jax.lax.stop_gradient(log_probs)
        best = batch.target_mask & ~negative
        metrics: Metrics = {
            f"nll/{name}": (losses.masked_sum(nll, chosen), jnp.sum(chosen).astype(nll.dtype))
            for name, chosen in (("best", best), ("worse", negative))
        }
        if batch.pretraining is not None:
            text = batch.pretraining
            own = jax.random.fold_in(key, TEXT)
            values = losses.cross_entropy(scored(params, frozen, text, own, None))
            count = jnp.sum(text.target_mask).astype(values.dtype)
            terms["pretraining"] = (jnp.sum(values), count, objective.pretraining_coefficient)
        return terms, metrics

    def loss(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, extra: dict[str, Any]
    ) -> tuple[Terms, Metrics]:
        del extra
        return terms_of(params, frozen, batch, key, forget=objective.forget_max_ratio > 0)

    def evaluation(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, extra: dict[str, Any]
    ) -> tuple[Terms, Metrics]:
        del extra
        return terms_of(params, frozen, batch, key, forget=False)

    return Objective(loss=loss, evaluation=evaluation)


def _draws_of_tokens(batch: Batch) -> jax.Array:
    """The number of every token's draw (``data.ChainExamples``), int32 ``[B, T]``; of other examples, their record."""
    if "draw" not in batch.extras:
        return records_of_tokens(batch)
    return jnp.take_along_axis(batch.extras["draw"], jnp.maximum(batch.example - 1, 0), axis=1)  # a sequence an example


def _forgetful(key: jax.Array, batch: Batch, objective: HindsightObjective) -> jax.Array:
    """bool ``[B, T, T]``; what is drawn for a sequence depends on the step, its own draw and places inside it alone."""
    rows, length = batch.tokens.shape
    return losses.forgetful_causal_mask(
        jax.random.fold_in(key, FORGET),
        rows,
        length,
        min_ratio=objective.forget_min_ratio,
        max_ratio=objective.forget_max_ratio,
        example_ids=_draws_of_tokens(batch),
        segment_ids=batch.example,
    )
