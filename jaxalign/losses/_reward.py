"""Losses of reward models: scores in, one value a comparison out."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores

Array = jax.Array


def bradley_terry(chosen: Array, rejected: Array, *, margin: float | Array = 0.0) -> Array:
    """Negative log-likelihood of a preference under the Bradley-Terry model.

        L = -log sigmoid(r_w - r_l - margin)

    (Bradley and Terry 1952; Rafailov et al. 2023, arXiv 2305.18290, equation 2; the margin as in Llama 2, Touvron et
    al. 2023, arXiv 2307.09288, equation 2.)

    Args:
      chosen: floating ``[B]``: scores of the preferred answers.
      rejected: the same shape.
      margin: a number, or ``[B]``: how much better the chosen answer was rated.

    Returns:
      One value a pair ``[B]``, nats, at least float32.
    """
    chosen, rejected = as_scores(chosen, rejected)
    if jnp.ndim(margin) > 0:
        chex.assert_shape(margin, chosen.shape)
    return -jax.nn.log_sigmoid(chosen - rejected - jnp.asarray(margin, chosen.dtype))


def reward_centering(chosen: Array, rejected: Array) -> Array:
    """Draws rewards towards a mean of 0, which Bradley-Terry leaves free: L = (r_w + r_l)^2.

    (Eisenstein et al. 2023, arXiv 2312.09244, section 4.) Arguments and result as in :func:`bradley_terry`.
    """
    chosen, rejected = as_scores(chosen, rejected)
    return jnp.square(chosen + rejected)


def plackett_luce(ranked_rewards: Array, mask: Array) -> Array:
    """Negative log-likelihood of a whole ranking; with two answers it is :func:`bradley_terry`.

        L = -sum_k (r_k - logsumexp_{j >= k} r_j)

    (Plackett 1975, Luce 1959; Rafailov et al. 2023, arXiv 2305.18290, equation 18.)

    Args:
      ranked_rewards: floating ``[..., K]``, best first.
      mask: bool ``[..., K]``, False where there is no answer: such places are left out, wherever they stand.

    Returns:
      One value a ranking ``[...]``, nats, at least float32; 0 with fewer than two answers.
    """
    (rewards,) = as_scores(ranked_rewards)
    mask = as_mask(mask, rewards)
    rewards = jnp.where(mask, rewards, 0)
    count = rewards.shape[-1]
    # An answer always competes with itself, so that no sum is empty; the masked rows are dropped afterwards.
    competes = jnp.triu(jnp.ones((count, count), bool)) & (mask[..., None, :] | jnp.eye(count, dtype=bool))
    competitors = jnp.broadcast_to(rewards[..., None, :], competes.shape)
    surprisal = jax.nn.logsumexp(competitors, axis=-1, where=competes) - rewards
    return jnp.sum(jnp.where(mask, surprisal, 0), axis=-1)


def partial_plackett_luce(rewards: Array, beats: Array) -> Array:
    """The same for a ranking that may have ties and gaps: every answer against those it was rated above.

        L = sum_{i: beats_i not empty} (logsumexp_{j in {i} + beats_i} r_j - r_i)

    Without ties it is :func:`plackett_luce`. Answers rated alike do not compete with each other.

    Args:
      rewards: floating ``[..., K]``, in any order.
      beats: bool ``[..., K, K]``: entry (i, j) is True where answer i was rated above answer j.

    Returns:
      One value an answer ``[..., K]``, nats, at least float32: its term of the sum, 0 where it beats none.
    """
    (rewards,) = as_scores(rewards)
    chex.assert_type(beats, bool)
    chex.assert_shape(beats, (*rewards.shape, rewards.shape[-1]))
    competes = beats | jnp.eye(rewards.shape[-1], dtype=bool)
    competitors = jnp.broadcast_to(rewards[..., None, :], competes.shape)
    surprisal = jax.nn.logsumexp(competitors, axis=-1, where=competes) - rewards
    return jnp.where(beats.any(-1), surprisal, 0)
