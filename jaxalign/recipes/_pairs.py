"""The loss of every pairwise method as a train step sees it, with the reference where it lies."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import losses, models
from jaxalign.data import Batch
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._objective import Objective, Params, frozen_trunk
from jaxalign.recipes._preference import PreferenceObjective, preference_terms
from jaxalign.recipes._scores import PairScores, pair_scores, score_targets
from jaxalign.training import Metrics, Terms

__all__ = ["pair_metrics", "preference_objective"]


def preference_objective(
    config: ModelConfig,
    objective: PreferenceObjective,
    *,
    reference_update_every: int = 0,
    reference_update_rate: float = 0.6,
) -> Objective:
    """Make the pure loss of a pairwise method: DPO and its variants, Preferred-FT, Unlikelihood, or a mix.

    Reference log-probs are ``batch.extras["reference_log_probs"]`` where the batch carries them; else the reference
    ``frozen["reference"]`` (or, when it moves, ``extra["reference"]``) scores the batch inside the step. The frozen
    lower stack, if any, is run once for both.

    Args:
      config: the model, as ``models.freeze`` returned it.
      objective: losses and options.
      reference_update_every: TR-DPO: every that many steps the reference moves towards the policy; 0 = never
        (Gorbatovski et al. 2024, arXiv 2404.09656, equation 4).
      reference_update_rate: TR-DPO: reference <- rate * policy + (1 - rate) * reference.

    Raises:
      InputError: a rate outside (0, 1], a moving reference for losses that read none, or one that moves part of the
        way to a policy that is an adapter.
    """
    moving = reference_update_every > 0
    if moving and not objective.needs_reference:
        raise InputError(f"--reference-update-every: loss {' + '.join(objective.loss)} reads no reference")
    if reference_update_every < 0:
        raise InputError(f"--reference-update-every: must be at least 0, is {reference_update_every}")
    if not 0 < reference_update_rate <= 1:
        raise InputError(f"--reference-update-rate: must be in (0, 1], is {reference_update_rate}")
    if moving and config.lora is not None and reference_update_rate != 1:
        raise InputError(
            f"--reference-update-rate: with --lora-rank it must be 1, is {reference_update_rate}: the mean of two "
            "adapters' factors is not the mean of the adapters"
        )

    def reference_log_probs(
        frozen: dict[str, Params], batch: Batch, extra: dict[str, Any], trunk: jax.Array | None
    ) -> jax.Array | None:
        if not objective.needs_reference:
            return None
        if "reference_log_probs" in batch.extras and not moving:
            return batch.extras["reference_log_probs"]
        own = extra["reference"] if moving else frozen["reference"]
        return score_targets(
            config, models.combine(own, frozen["base"]), batch, trunk=trunk, temperature=objective.temperature
        )

    def loss(
        params: Params, frozen: dict[str, Params], batch: Batch, key: jax.Array, extra: dict[str, Any]
    ) -> tuple[Terms, Metrics]:
        trunk = frozen_trunk(config, params, frozen, batch)
        reference = reference_log_probs(frozen, batch, jax.lax.stop_gradient(extra), trunk)
        policy = score_targets(
            config,
            models.combine(params, frozen["base"]),
            batch,
            trunk=trunk,
            temperature=objective.temperature,
            dropout_key=key,
        )
        scores, desensitised = pair_scores(batch, policy, reference), None
        if objective.length_desensitised is not None:
            desensitised = pair_scores(batch, policy, reference, length_desensitised=objective.length_desensitised)
        terms = preference_terms(scores, policy, batch, objective, extra, desensitised=desensitised)
        return terms, pair_metrics(scores, beta=objective.beta, with_reference=objective.needs_reference)

    def initial_extra(reference: Params) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if "bco" in objective.loss:
            extra["reward_moments"] = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        if moving:
            extra["reference"] = jax.tree.map(jnp.copy, reference)
        return extra

    def update_extra(extra: dict[str, Any], params: Params, metrics: Metrics, step: jax.Array) -> dict[str, Any]:
        updated = dict(extra)
        if "bco" in objective.loss:
            (chosen, count), (rejected, _) = metrics["rewards/chosen"], metrics["rewards/rejected"]
            total, seen = extra["reward_moments"]
            updated["reward_moments"] = (total + chosen + rejected, seen + 2 * count)
        if moving:
            due = (step % reference_update_every) == 0
            rate = jnp.where(due, reference_update_rate, 0.0)
            updated["reference"] = jax.tree.map(
                lambda old, new: (old + rate * (new - old)).astype(old.dtype), extra["reference"], params
            )
        return updated

    plain_dpo = objective.loss == ("sigmoid",) and not objective.policy_weighting
    return Objective(
        loss=loss,
        needs_reference=objective.needs_reference and not moving,  # one that moves is in the state
        temperature=objective.temperature,
        couples_rows=objective.couples_pairs,
        initial_extra=initial_extra,
        update_extra=update_extra if moving or "bco" in objective.loss else None,
        first_loss=math.log(2) * objective.coefficients[0] if plain_dpo else None,
    )


def pair_metrics(scores: PairScores, *, beta: float, with_reference: bool) -> Metrics:
    """What people look at while a pairwise method trains, as (sum, count) over pairs.

    ``log_probs/*`` are whole answers' log-probabilities, ``log_ratios/*`` their change against the reference (nats;
    "chosen falls" shows here), ``rewards/*`` beta times that, ``rewards/accuracy`` the share of pairs that the implicit
    reward orders rightly.
    """
    mask = scores.mask
    count = jnp.sum(mask).astype(jnp.float32)

    def total(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(jnp.where(mask, jax.lax.stop_gradient(values), 0.0)), count

    metrics = {
        "log_probs/chosen": total(scores.policy_chosen),
        "log_probs/rejected": total(scores.policy_rejected),
        "tokens/chosen": total(scores.chosen_tokens),
        "tokens/rejected": total(scores.rejected_tokens),
    }
    if with_reference:
        chosen = losses.implicit_reward(scores.policy_chosen, scores.reference_chosen, beta=beta)
        rejected = losses.implicit_reward(scores.policy_rejected, scores.reference_rejected, beta=beta)
        metrics |= {
            "log_ratios/chosen": total(scores.chosen_log_ratio),
            "log_ratios/rejected": total(scores.rejected_log_ratio),
            "rewards/chosen": total(chosen),
            "rewards/rejected": total(rejected),
            "rewards/margin": total(chosen - rejected),
            "rewards/accuracy": total((chosen > rejected).astype(jnp.float32)),
        }
    return metrics
