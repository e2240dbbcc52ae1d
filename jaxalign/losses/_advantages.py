"""From the score of a whole response to what each of its tokens did better than expected."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores, in_range
from jaxalign.losses._tokens import kl_estimate

Array = jax.Array


def missing_eos_scores(
    scores: Array, finished: Array, *, replace: float | None = None, penalty: float | None = None
) -> Array:
    """The scores of responses, some of which were cut before their EOS.

    ``replace``: a cut response scores this, whatever the reward says (-1 in Huang et al. 2024, arXiv 2403.17031).
    ``penalty``: it scores this much less (TRL). With neither the scores stay: right where all have one length.

    Args:
      scores: floating ``[B]``.
      finished: bool ``[B]``, True where the response ends with its EOS.

    Returns:
      ``[B]``, at least float32.

    Raises:
      ValueError: both are given.
    """
    (scores,) = as_scores(scores)
    finished = as_mask(finished, scores)
    if replace is not None and penalty is not None:
        raise ValueError("replace and penalty: give one of the two")
    if replace is not None:
        return jnp.where(finished, scores, jnp.asarray(replace, scores.dtype))
    if penalty is not None:
        return jnp.where(finished, scores, scores - penalty)
    return scores


def kl_penalised_rewards(
    scores: Array,
    log_probs: Array,
    reference_log_probs: Array,
    mask: Array,
    *,
    beta: float | Array,
    estimator: Literal["k1", "k2", "k3"] = "k1",
    score_at: Literal["eos", "after_eos"] = "eos",
) -> tuple[Array, Array]:
    """The reward of every token: a penalty for leaving the reference, and at one token the response's score.

        r_t = -beta kl_t + [t = T] score,    T = the last token ("eos") or the one after it ("after_eos")

    (Ziegler et al. 2019, arXiv 1909.08593, equation 2; Stiennon et al. 2020, arXiv 2009.01325.) With k1 the rewards of
    a response sum to score - beta (log pi(y) - log ref(y)).

    Args:
      scores: floating ``[B]``.
      log_probs: floating ``[B, T]``, nats: the policy's at the rollout.
      reference_log_probs: the same shape.
      mask: bool ``[B, T]``: the tokens of each response.
      beta: a number or a scalar array, at least 0.
      estimator: of the KL, as in :func:`kl_estimate`.
      score_at: "eos": the score lands on the last token of the mask; "after_eos": on the token after it where that fits
        into T, else on the last (Huang et al. 2024, arXiv 2403.17031, detail 4; TRL).

    Returns:
      (rewards ``[B, T]``, at least float32, 0 outside the mask; the mask of tokens that have a reward: with
      "after_eos" the mask has one token more where it fits). A row without tokens has no reward at all.

    Raises:
      ValueError: an unknown estimator or place, a beta below 0.
    """
    if score_at not in ("eos", "after_eos"):
        raise ValueError(f"score_at must be 'eos' or 'after_eos', not {score_at!r}")
    in_range(0, float("inf"), beta=beta)
    log_probs, reference_log_probs = as_scores(log_probs, reference_log_probs)
    chex.assert_rank(log_probs, 2)
    mask = as_mask(mask, log_probs)
    (scores,) = as_scores(scores)
    chex.assert_shape(scores, log_probs.shape[:1])
    kept, kept_reference = jnp.where(mask, log_probs, 0), jnp.where(mask, reference_log_probs, 0)
    penalty = -beta * kl_estimate(kept, kept_reference, estimator=estimator)
    columns = jnp.arange(mask.shape[1])
    place = jnp.max(jnp.where(mask, columns, -1), axis=1)  # -1 where a row has no token
    if score_at == "after_eos":
        place = jnp.where(place < 0, -1, jnp.minimum(place + 1, mask.shape[1] - 1))
    at = columns == place[:, None]
    rewards = jnp.where(mask, penalty, 0) + jnp.where(at, scores[:, None], 0)
    return rewards, mask | at


def generalised_advantages(
    rewards: Array, values: Array, mask: Array, *, discount: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Array, Array]:
    """Generalised advantage estimation, by a walk from the end of every response.

        delta_t = r_t + discount V_{t+1} - V_t
        A_t = delta_t + discount lambda A_{t+1},    R_t = A_t + V_t,    V = A = 0 after the last token

    (Schulman et al. 2016, arXiv 1506.02438, equations 11 and 16.) The value after the end is 0, also of a response that
    was cut. lambda = 1 gives returns minus values, lambda = 0 one-step errors.

    Args:
      rewards: floating ``[..., T]``.
      values: the same shape; V_t is that of the state before token t.
      mask: bool, the same shape. A token outside it is passed over: the walk goes from the one after it to the one
        before it, so that what stands there reaches nothing.
      discount, gae_lambda: in [0, 1].

    Returns:
      (advantages, returns), each ``[..., T]``, at least float32, 0 outside the mask; constants (no gradient).

    Raises:
      ValueError: a number outside its range.
    """
    rewards, values = as_scores(rewards, values)
    mask = as_mask(mask, rewards)
    in_range(0, 1, discount=discount, gae_lambda=gae_lambda)
    rewards, values = jax.lax.stop_gradient((jnp.where(mask, rewards, 0), jnp.where(mask, values, 0)))

    def walk(after: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        advantage_after, value_after = after
        reward, value, kept = now
        error = reward + discount * value_after - value
        advantage = error + discount * gae_lambda * advantage_after
        here = (jnp.where(kept, advantage, advantage_after), jnp.where(kept, value, value_after))
        return here, jnp.where(kept, advantage, 0)

    end = jnp.zeros_like(rewards[..., 0])
    rewards_in_time, values_in_time, mask_in_time = (jnp.moveaxis(one, -1, 0) for one in (rewards, values, mask))
    steps = (rewards_in_time, values_in_time, mask_in_time)
    _, advantages = jax.lax.scan(walk, (end, end), steps, reverse=True)
    advantages = jnp.moveaxis(advantages, 0, -1)
    return advantages, jnp.where(mask, advantages + values, 0)
