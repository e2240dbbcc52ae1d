"""Pair losses and weights of the policy's own length-averaged log-probabilities: no reference model."""

import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_scores, positive
from jaxalign.losses._tokens import SMALLEST_SURPRISAL

Array = jax.Array


def orpo(policy_chosen_mean: Array, policy_rejected_mean: Array, *, weight: float) -> Array:
    """Odds-ratio preference optimisation: SFT on the chosen answer plus the odds ratio.

        L = -m_w - weight * log sigmoid(log odds(m_w) - log odds(m_l)),    log odds(m) = m - log(1 - exp(m))

    m = mean log-probability a token. (Hong et al. 2024, arXiv 2403.07691, equations 4 to 7.) -m is kept above 1e-6
    inside the odds. Convention: the whole loss, with the SFT term a mean per pair; TRL averages that term over the
    tokens of the batch.

    Args:
      policy_chosen_mean: floating ``[B]``: ``sequence_log_prob(..., average=True)``, nats a token.
      policy_rejected_mean: the same shape.
      weight: of the odds-ratio term, 0 or more (lambda in the paper, called beta in TRL).

    Returns:
      One value a pair ``[B]``, at least float32.
    """
    chosen, rejected = as_scores(policy_chosen_mean, policy_rejected_mean)
    return -chosen - weight * jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(mean: Array) -> Array:
    surprisal = jnp.maximum(-mean, SMALLEST_SURPRISAL)
    return -surprisal - jax.nn.log1mexp(surprisal)


def simpo(policy_chosen_mean: Array, policy_rejected_mean: Array, *, beta: float, margin: float) -> Array:
    """Simple preference optimisation.

        L = -log sigmoid(beta (m_w - m_l) - margin)

    m = mean log-probability a token. (Meng et al. 2024, arXiv 2405.14734, equation 6; ``margin`` is its gamma, in units
    of reward.)

    Args:
      policy_chosen_mean: floating ``[B]``: ``sequence_log_prob(..., average=True)``, nats a token.
      policy_rejected_mean: the same shape.
      beta: above 0 (2 to 10 in the paper).
      margin: the target reward margin (0.3 to 1.6 in the paper).

    Returns:
      One value a pair ``[B]``, at least float32.
    """
    positive(beta=beta)
    chosen, rejected = as_scores(policy_chosen_mean, policy_rejected_mean)
    return -jax.nn.log_sigmoid(beta * (chosen - rejected) - margin)


def wpo_weights(policy_chosen_mean: Array, policy_rejected_mean: Array) -> Array:
    """Pair weights of weighted preference optimisation, without gradient.

        w = min(1, exp(m_w + m_l))

    m = mean log-probability a token: a pair that the policy would hardly write itself counts less. (Zhou et al. 2024,
    arXiv 2406.11827, equation 4.) Multiply any unreduced pair loss by it.

    Args:
      policy_chosen_mean: floating ``[B]``: ``sequence_log_prob(..., average=True)``, nats a token.
      policy_rejected_mean: the same shape.

    Returns:
      ``[B]`` in [0, 1], at least float32.
    """
    chosen, rejected = as_scores(policy_chosen_mean, policy_rejected_mean)
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(chosen + rejected, 0)))
