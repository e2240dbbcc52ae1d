"""The losses of PPO: one value a token, for the policy and for the critic."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_scores, in_range, positive

Array = jax.Array

# Log-ratios are kept within it: exp(20) is far outside any clip, and finite.
LARGEST_LOG_RATIO = 20.0


def ppo_policy(
    log_probs: Array, old_log_probs: Array, advantages: Array, *, clip: float = 0.2, dual_clip: float | None = None
) -> Array:
    """The clipped surrogate objective, negated: what PPO's policy minimises.

        rho_t = exp(log pi(a_t) - log pi_old(a_t))
        L_t   = -min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t)
        with dual_clip = c:  L_t <- min(L_t, -c A_t) where A_t < 0

    (Schulman et al. 2017, arXiv 1707.06347, equation 7; the dual clip Ye et al. 2020, arXiv 1912.09729, equation 5.)
    At rho = 1 its gradient is -A_t grad log pi(a_t), the policy gradient. The log-ratio is kept within +-20.

    Args:
      log_probs: floating ``[..., T]``, nats: the policy's, of the tokens taken, at the temperature that took them.
      old_log_probs: the same shape: those of the policy that took them; a constant, which takes no gradient.
      advantages: the same shape; a constant.
      clip: how far the ratio may go before its gradient ends, above 0.
      dual_clip: bound on the loss where the advantage is negative, above 1; None = none.

    Returns:
      One value a token ``[..., T]``, at least float32. Mask it: what stands under padding reaches nothing else.

    Raises:
      ValueError: a number outside its range.
    """
    log_probs, old_log_probs, advantages = as_scores(log_probs, old_log_probs, advantages)
    positive(clip=clip)
    ratio, advantages = _ratio(log_probs, old_log_probs), jax.lax.stop_gradient(advantages)
    loss = jnp.maximum(-ratio * advantages, -jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
    if dual_clip is not None:
        in_range(1, float("inf"), open_low=True, dual_clip=dual_clip)
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return loss


def ppo_clipped(
    log_probs: Array, old_log_probs: Array, advantages: Array, *, clip: float = 0.2, dual_clip: float | None = None
) -> Array:
    """Where the clip ends the policy's gradient: rho_t above 1 + clip with A_t > 0, below 1 - clip with A_t < 0.

    With ``dual_clip`` also rho_t above it with A_t < 0. Arguments as in :func:`ppo_policy`. Returns bool ``[..., T]``;
    its masked mean is the clip fraction.
    """
    log_probs, old_log_probs, advantages = as_scores(log_probs, old_log_probs, advantages)
    positive(clip=clip)
    ratio = _ratio(log_probs, old_log_probs)
    ended = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
    if dual_clip is not None:
        in_range(1, float("inf"), open_low=True, dual_clip=dual_clip)
        ended |= (advantages < 0) & (ratio > dual_clip)
    return ended


def ppo_value(values: Array, old_values: Array, returns: Array, *, clip: float | None = 0.2) -> Array:
    """Squared error of the critic, the worse of clipped and unclipped.

        V_clipped = V_old + clip(V - V_old, -clip, clip)
        L_t = 0.5 max((V_t - R_t)^2, (V_clipped_t - R_t)^2)

    (Schulman et al.'s reference implementation; Huang et al. 2024, arXiv 2403.17031.)

    Args:
      values: floating ``[..., T]``: the critic's, as it is trained.
      old_values: the same shape: its values at the rollout; a constant.
      returns: the same shape: what it should say; a constant.
      clip: how far a value may move before its gradient ends, in reward units, above 0; None = unclipped.

    Returns:
      One value a token ``[..., T]``, at least float32.

    Raises:
      ValueError: a clip that is not above 0.
    """
    values, old_values, returns = as_scores(values, old_values, returns)
    old_values, returns = jax.lax.stop_gradient((old_values, returns))
    error = jnp.square(values - returns)
    if clip is None:
        return 0.5 * error
    positive(clip=clip)
    return 0.5 * jnp.maximum(error, _clipped_error(values, old_values, returns, clip))


def ppo_value_clipped(values: Array, old_values: Array, returns: Array, *, clip: float = 0.2) -> Array:
    """Where the clip ends the critic's gradient: the clipped error is the larger.

    Arguments as in :func:`ppo_value`. Returns bool ``[..., T]``; its masked mean is the value clip fraction.
    """
    values, old_values, returns = as_scores(values, old_values, returns)
    positive(clip=clip)
    return _clipped_error(values, old_values, returns, clip) > jnp.square(values - returns)


def adaptive_kl_coefficient(
    coefficient: Array | float, kl: Array | float, *, target: float, episodes: int, horizon: float
) -> Array:
    """The KL coefficient of the next update, moved so that the KL comes nearer to its target.

        beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon)

    (Ziegler et al. 2019, arXiv 1909.08593, section 2.2.)

    Args:
      coefficient: beta, scalar, above 0.
      kl: the mean KL of whole responses under it, nats, scalar.
      target: nats, above 0.
      episodes: responses the mean is of.
      horizon: episodes over which beta may change by a fifth.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: a number that is not above 0.
    """
    positive(target=target, episodes=episodes, horizon=horizon)
    coefficient, kl = as_scores(*(jnp.asarray(value, jnp.result_type(float)) for value in (coefficient, kl)))
    chex.assert_rank((coefficient, kl), 0)
    return coefficient * (1 + jnp.clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)


def _clipped_error(values: Array, old_values: Array, returns: Array, clip: float) -> Array:
    return jnp.square(old_values + jnp.clip(values - old_values, -clip, clip) - returns)


def _ratio(log_probs: Array, old_log_probs: Array) -> Array:
    change = log_probs - jax.lax.stop_gradient(old_log_probs)
    return jnp.exp(jnp.clip(change, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
