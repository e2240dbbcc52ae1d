"""The two jitted programs of PPO: what is computed once of a rollout, and the update that trains on it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign import losses, sharding, training
from jaxalign.data import Batch
from jaxalign.losses import masked_mean, masked_var
from jaxalign.recipes._actor_critic import ActorCritic
from jaxalign.recipes._ppo_config import PPOFitConfig
from jaxalign.training import Metrics, Terms, TrainState, TrainStep

__all__ = ["make_ppo_step", "make_rollout_pass", "ppo_loss"]

Extras = dict[str, jax.Array]

# Folded into the key of an update to shuffle; the optimizer steps fold in their numbers.
SHUFFLE = 0x5348_5546


class RolloutPass:
    """A jitted ``(params, frozen, batch) -> extras``. ``lower`` is ``jax.jit``'s, for planning."""

    def __init__(self, function: jax.stages.Wrapped, mesh: Mesh) -> None:
        self._function, self._mesh = function, mesh

    def __call__(self, params: Any, frozen: dict[str, Any], batch: Batch) -> Extras:
        with jax.set_mesh(self._mesh):
            return self._function(params, frozen, batch)

    def lower(self, params: Any, frozen: dict[str, Any], batch: Batch) -> Any:
        """Lower the pass for these arrays or shapes."""
        with jax.set_mesh(self._mesh):
            return self._function.lower(params, frozen, batch)


def make_rollout_pass(models: ActorCritic, config: PPOFitConfig, mesh: Mesh) -> RolloutPass:
    """Return the jitted ``(params, frozen, batch) -> extras``: what a rollout is worth to those who made it.

    ``old_log_probs``, ``reference_log_probs``, ``old_values`` and ``entropy`` ``[B, N]``, and ``scores`` ``[B]`` where
    the reward is a model; by the training graph, with the parameters and at the temperature that sampled, in pieces as
    large as an optimizer step's micro-batches. So the ratio of the first optimizer step is 1.
    """
    rows = sharding.batch_sharding(mesh)

    def part(params: Any, frozen: dict[str, Any], batch: Batch) -> Extras:
        log_probs, values, hidden = models.log_probs_and_values(params, frozen, batch)
        found = {
            "old_log_probs": log_probs,
            "old_values": values,
            "reference_log_probs": models.reference_log_probs(frozen, batch),
            "entropy": models.entropy(params, frozen, hidden, batch),
        }
        if models.reward is not None:
            found["scores"] = models.rewards(frozen, batch)
        return found

    def whole(params: Any, frozen: dict[str, Any], batch: Batch) -> Extras:
        if config.parts == 1:
            return part(params, frozen, batch)
        split = training.split_rows(batch, config.parts)

        def one(index: jax.Array) -> Extras:
            return part(params, frozen, training.take_part(split, index, mesh))

        stacked = jax.lax.map(one, jnp.arange(config.parts))  # [parts, B / parts, ...]
        joined = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), stacked)
        return jax.lax.with_sharding_constraint(joined, rows)

    return RolloutPass(jax.jit(whole), mesh)


def ppo_loss(models: ActorCritic, config: PPOFitConfig) -> training.LossFunction:
    """Make the loss of one optimizer step: the clipped policy objective and the clipped value error.

        L = sum_t ppo_policy_t / policy tokens + value_coefficient * sum_t ppo_value_t / value tokens

    (Schulman et al. 2017, arXiv 1707.06347, equation 9, without its entropy bonus.)
    """

    def loss(params: Any, frozen: dict[str, Any], batch: Batch, key: jax.Array, extra: Any) -> tuple[Terms, Metrics]:
        del key, extra
        carried = batch.extras
        log_probs, values, _ = models.log_probs_and_values(params, frozen, batch)
        mask, value_mask = batch.target_mask, carried["value_mask"]
        tokens, value_tokens = (jnp.sum(one).astype(jnp.float32) for one in (mask, value_mask))

        def total(x: jax.Array, where: jax.Array) -> jax.Array:
            return losses.masked_sum(x, where)

        policy = losses.ppo_policy(
            log_probs, carried["old_log_probs"], carried["advantages"], clip=config.clip, dual_clip=config.dual_clip
        )
        value = losses.ppo_value(values, carried["old_values"], carried["returns"], clip=config.value_clip)
        terms: Terms = {
            "policy": (total(policy, mask), tokens, 1.0),
            "value": (total(value, value_mask), value_tokens, config.value_coefficient),
        }
        fixed_log_probs, fixed_values = jax.lax.stop_gradient((log_probs, values))
        change = fixed_log_probs - carried["old_log_probs"]
        ratio = jnp.exp(jnp.clip(change, -20.0, 20.0))
        clipped = losses.ppo_clipped(
            fixed_log_probs,
            carried["old_log_probs"],
            carried["advantages"],
            clip=config.clip,
            dual_clip=config.dual_clip,
        )
        metrics: Metrics = {
            "policy/approxkl": (total(0.5 * jnp.square(change), mask), tokens),
            "policy/clipfrac": (total(clipped.astype(jnp.float32), mask), tokens),
            "val/ratio": (total(ratio, mask), tokens),
            "val/ratio_var": (total(jnp.square(ratio - 1), mask), tokens),
        }
        if config.value_clip is not None:
            held = losses.ppo_value_clipped(
                fixed_values, carried["old_values"], carried["returns"], clip=config.value_clip
            )
            metrics["val/clipfrac"] = (total(held.astype(jnp.float32), value_mask), value_tokens)
        return terms, metrics

    return loss


def make_ppo_step(
    models: ActorCritic,
    config: PPOFitConfig,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    state_shardings: TrainState,
    frozen_shardings: Any,
    schedule: Callable[[Any], Any],
) -> TrainStep:
    """Return the jitted update ``(state, frozen, rollout) -> (state, metrics)``: all passes over one rollout.

    Shaped rewards, advantages and their whitening are those of the whole rollout. Every pass shuffles anew; every
    optimizer step is one of ``training.make_update``. It ends early on ``stop_kl`` (the step that saw it is not taken)
    and at a loss or gradient that is not finite (``nonfinite`` is then 1, and the state's step counter stays).

    The state's ``extra`` is ``{"kl_coefficient": beta}``.

    Metrics have the names that TRL's users know, each masked and averaged over the tokens of all optimizer steps;
    ``first_minibatch/*`` are those of the first alone, where the ratio is 1. ``docs/ppo.md`` lists them all.
    """
    update = training.make_update(
        ppo_loss(models, config),
        optimizer,
        mesh=mesh,
        shardings=state_shardings.params,
        accumulation=config.accumulation,
    )
    steps = config.ppo_epochs * config.minibatches

    def minibatch(rollout: Batch, key: jax.Array, index: jax.Array) -> Batch:
        if config.minibatches == 1:
            return rollout  # whatever the order, the sums are the same
        chosen = minibatch_rows(key, index, rollout.tokens.shape[0], config.minibatches)
        return training.constrain_batch(jax.tree.map(lambda leaf: leaf[chosen], rollout), mesh)

    def step(state: TrainState, frozen: Any, rollout: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        shuffle = jax.random.fold_in(key, SHUFFLE)
        beta = state.extra["kl_coefficient"]
        prepared, report = prepare(rollout, beta, config)

        def one(index: jax.Array, params: Any, optimizer_state: Any) -> training.Updated:
            batch = minibatch(prepared, shuffle, index)
            return update(params, optimizer_state, frozen, batch, jax.random.fold_in(key, index), state.extra)

        found = jax.eval_shape(one, jnp.int32(0), state.params, state.optimizer_state)
        zeros = jax.tree.map(lambda leaf: jnp.zeros((), jnp.float32), found.metrics)
        Carry = tuple[jax.Array, jax.Array, jax.Array, Any, Any, Metrics, Metrics]

        def goes_on(carry: Carry) -> jax.Array:
            index, stopped, finite, *_ = carry
            return (index < steps) & ~stopped & finite

        def body(carry: Carry) -> Carry:
            index, _, _, params, optimizer_state, sums, first = carry
            updated = one(index, params, optimizer_state)
            stopped = jnp.zeros((), bool)
            new = (updated.params, updated.optimizer_state)
            if config.stop_kl is not None:
                value, count = updated.metrics["policy/approxkl"]
                stopped = value > config.stop_kl * count
                new = training.select(stopped, (params, optimizer_state), new)
            metrics = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), updated.metrics)
            sums = jax.tree.map(jnp.add, sums, metrics)
            first = training.select(index == 0, metrics, first)
            return index + 1, stopped, updated.finite, *new, sums, first

        start = (
            jnp.int32(0), jnp.zeros((), bool), jnp.ones((), bool), state.params, state.optimizer_state, zeros, zeros,
        )  # fmt: skip
        index, stopped, finite, params, optimizer_state, sums, first = jax.lax.while_loop(goes_on, body, start)
        if config.stop_kl is not None:  # steps that were not taken still count: the rate falls over the run
            following = training.at_update(optimizer_state, (state.step + 1) * steps)
            optimizer_state = training.select(finite, following, optimizer_state)
        report |= _renamed(sums) | {f"first_minibatch/{name}": first[f"{group}/{name}"] for group, name in _FIRST}
        report |= {
            "policy/optimizer_steps": (index - stopped, 1.0),
            "nonfinite": (1.0 - finite, 1.0),
            "lr": (schedule(state.step * steps), 1.0),
        }
        extra = state.extra
        if config.kl_target is not None:
            kl, count = report["objective/kl"]
            adapted = losses.adaptive_kl_coefficient(
                beta, kl / count, target=config.kl_target, episodes=config.batch_size, horizon=config.kl_horizon
            )
            extra = {**extra, "kl_coefficient": adapted}
        number, extra = training.select(finite, (state.step + 1, extra), (state.step, state.extra))
        return TrainState(params, optimizer_state, number, state.key, extra), report

    def explain(
        state: TrainState,
        frozen: Any,
        rollout: Batch,
        metrics: Mapping[str, float],
        name_rows: training.NameRows | None,
    ) -> str:
        """Of the optimizer step that was not finite: the state has the parameters that it was given."""
        key = jax.random.fold_in(state.key, state.step)
        shuffle, index = jax.random.fold_in(key, SHUFFLE), int(metrics["policy/optimizer_steps"]) - 1
        loss, size = ppo_loss(models, config), rollout.tokens.shape[0]
        chosen = minibatch_rows(shuffle, index, size, config.minibatches)

        def of_rollout(params: Any, frozen: Any, rollout: Batch, key: Any, extra: Any) -> tuple[Terms, Metrics]:
            prepared = prepare(rollout, extra["kl_coefficient"], config)[0]
            return loss(params, frozen, minibatch(prepared, shuffle, jnp.int32(index)), key, extra)

        def name(rows: Sequence[int], length: int) -> list[int] | None:
            if name_rows is None or length not in (size, chosen.shape[0]):
                return None
            inside = config.minibatches > 1 and length != size
            return name_rows([int(chosen[row]) for row in rows] if inside else rows, size)

        return training.explain_loss(
            of_rollout, state.params, frozen, rollout, key, state.extra, mesh=mesh, name_rows=name
        )

    return training.jit_step(
        step,
        mesh=mesh,
        state_shardings=state_shardings,
        frozen_shardings=frozen_shardings,
        divisor=config.parts,
        explain=explain,
    )


def minibatch_rows(key: jax.Array, index: jax.Array | int, count: int, minibatches: int) -> jax.Array:
    """The rows of optimizer step ``index``: a part of a permutation of all rows that is new in every pass.

    Args:
      key: the update's.
      index: 0-based, over all passes.
      count: B, rows of the rollout.
      minibatches: parts of one pass.

    Returns:
      int32 ``[B / minibatches]``.
    """
    size = count // minibatches
    shuffled = jax.random.permutation(jax.random.fold_in(key, index // minibatches), count)
    return jax.lax.dynamic_slice_in_dim(shuffled, (index % minibatches) * size, size)


def prepare(rollout: Batch, beta: jax.Array, config: PPOFitConfig) -> tuple[Batch, Metrics]:
    """Rewards, advantages and returns of a whole rollout, and what it says about the policy that made it.

    Takes the extras of ``make_rollout_pass``, and ``scores`` ``[B]``, ``finished`` ``[B]``, ``sampler_log_probs``
    ``[B, N]``. What an update needs is carried on: ``old_log_probs``, ``old_values``, ``advantages``, ``returns``,
    ``value_mask``.
    """
    carried, mask = rollout.extras, rollout.target_mask
    old, reference, values = carried["old_log_probs"], carried["reference_log_probs"], carried["old_values"]
    scores = losses.missing_eos_scores(
        carried["scores"].astype(jnp.float32),
        carried["finished"],
        replace=config.missing_eos_score,
        penalty=config.missing_eos_penalty,
    )
    rewards, value_mask = losses.kl_penalised_rewards(
        scores, old, reference, mask, beta=beta, estimator=config.kl_estimator, score_at=config.score_at
    )
    if config.whiten_rewards:
        rewards = losses.whiten(rewards, value_mask, shift_mean=False)
    advantages, returns = losses.generalised_advantages(
        rewards, values, value_mask, discount=config.discount, gae_lambda=config.gae_lambda
    )
    unexplained = masked_var(returns - values, value_mask) / jnp.maximum(masked_var(returns, value_mask), 1e-8)
    if config.whiten_advantages:
        advantages = losses.whiten(advantages, mask)

    episodes = jnp.float32(scores.shape[0])
    tokens = jnp.sum(mask).astype(jnp.float32)
    penalty = -beta * losses.masked_sum(
        losses.kl_estimate(old, reference, estimator=config.kl_estimator), mask, axis=-1
    )
    finished = jnp.sum(carried["finished"]).astype(jnp.float32)
    gap = jnp.where(mask, jnp.abs(carried["sampler_log_probs"] - old), 0.0)
    report: Metrics = {
        "objective/kl": (losses.masked_sum(old - reference, mask), episodes),
        "objective/entropy": (-losses.masked_sum(old, mask), episodes),
        "objective/non_score_reward": (jnp.sum(penalty), episodes),
        "objective/rlhf_reward": (jnp.sum(scores + penalty), episodes),
        "objective/scores": (jnp.sum(scores), episodes),
        "objective/scores_std": (jnp.std(scores), 1.0),
        "objective/kl_coefficient": (beta, 1.0),
        "policy/entropy_avg": (losses.masked_sum(carried["entropy"], mask), tokens),
        "tokens": (tokens, 1.0),
        "val/num_eos_tokens": (finished, 1.0),
        "val/finished": (finished, episodes),
        "val/response_length": (tokens, episodes),
        "val/value_mean": (masked_mean(values, value_mask), 1.0),
        "val/return_mean": (masked_mean(returns, value_mask), 1.0),
        "val/explained_variance": (1.0 - unexplained, 1.0),
        "sampler/log_prob_gap_max": (jnp.max(gap), 1.0),
        "sampler/log_prob_gap_mean": (jnp.sum(gap), tokens),
    }
    extras = {
        "old_log_probs": old,
        "old_values": values,
        "advantages": advantages,
        "returns": returns,
        "value_mask": value_mask,
    }
    return rollout.replace(extras=extras), report


_FIRST = (("val", "ratio"), ("val", "ratio_var"), ("policy", "approxkl"), ("policy", "clipfrac"))
_NAMES = {
    "loss/policy": "loss/policy_avg",
    "loss/value": "loss/value_avg",
    "policy/approxkl": "policy/approxkl_avg",
    "policy/clipfrac": "policy/clipfrac_avg",
    "val/clipfrac": "val/clipfrac_avg",
}


def _renamed(metrics: Metrics) -> Metrics:
    return {_NAMES.get(name, name): value for name, value in metrics.items()}
