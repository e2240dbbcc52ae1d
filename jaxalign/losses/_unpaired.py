"""Losses of single labelled answers, and the batch statistics that they take as arguments."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores, positive
from jaxalign.losses._preference import log_ratios
from jaxalign.losses._reductions import masked_mean

Array = jax.Array


def kto(
    policy: Array,
    reference: Array,
    is_desirable: Array,
    *,
    beta: float,
    reference_kl: float | Array,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Array:
    """Kahneman-Tversky optimisation.

        L = w_D (1 - sigmoid(beta (x - z)))  of a desirable answer,    w_U (1 - sigmoid(beta (z - x)))  of another

    x = log pi/ref, z = ``reference_kl``, without gradient. (Ethayarajh et al. 2024, arXiv 2402.01306, equation 8.)

    Args:
      policy: floating ``[B]``: log-probability of the answer, summed over its tokens, EOS included; nats.
      reference: the frozen reference's, the same shape.
      is_desirable: bool ``[B]``.
      beta: above 0.
      reference_kl: a number, or ``[B]``, nats: the reference point, over the whole global batch; see
        :func:`kto_reference_kl`.
      desirable_weight: the paper keeps weight times number of the two kinds within 1 to 4/3 of each other.
      undesirable_weight: the same of the undesirable.

    Returns:
      One value an answer ``[B]``, at least float32.
    """
    positive(beta=beta)
    policy, reference = as_scores(policy, reference)
    is_desirable = as_mask(is_desirable, policy)
    if jnp.ndim(reference_kl) > 0:
        chex.assert_shape(reference_kl, policy.shape)
    reference_point = jax.lax.stop_gradient(jnp.asarray(reference_kl, policy.dtype))
    gain = beta * (policy - reference - reference_point)
    # sigmoid(-g) is 1 - sigmoid(g) without the cancellation.
    return jnp.where(is_desirable, desirable_weight * jax.nn.sigmoid(-gain), undesirable_weight * jax.nn.sigmoid(gain))


def kto_reference_kl(policy: Array, reference: Array, mask: Array) -> Array:
    """KTO's reference point: max(0, mean log pi/ref) over *mismatched* prompt-answer pairs, without gradient.

    (Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1.)

    Args:
      policy: floating, any shape: log-probabilities of answers under another row's prompt, over the global batch; nats.
      reference: the frozen reference's, the same shape.
      mask: bool, the same shape: which entries are answers.

    Returns:
      A scalar, nats, at least float32; 0 for an empty mask.
    """
    policy, reference = as_scores(policy, reference)
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(policy - reference, mask), 0))


def bco(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    shift: float | Array = 0.0,
) -> Array:
    """Binary classifier optimisation, of both answers of a pair.

        L = -log sigmoid(beta a - shift) - log sigmoid(-(beta b - shift)),    a, b = log pi/ref of chosen, of rejected

    (Jung et al. 2024, arXiv 2404.04656, equation 11.) The answers do not meet: each is told from ``shift``.

    Args:
      policy_chosen: floating ``[B]``, and the three others alike, as in :func:`dpo`.
      policy_rejected: the policy's, of the rejected answer.
      reference_chosen: the reference's, of the chosen answer.
      reference_rejected: the reference's, of the rejected answer.
      beta: above 0.
      shift: a number, or ``[B]``, in units of reward (beta times nats), without gradient: a mean over the whole global
        batch or a moving average of it; see :func:`bco_shift`.

    Returns:
      One value a pair ``[B]``, at least float32.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    if jnp.ndim(shift) > 0:
        chex.assert_shape(shift, a.shape)
    level = jax.lax.stop_gradient(jnp.asarray(shift, a.dtype))
    return -jax.nn.log_sigmoid(beta * a - level) - jax.nn.log_sigmoid(level - beta * b)


def bco_shift(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    mask: Array,
    *,
    beta: float,
) -> Array:
    """BCO's shift: the mean implicit reward of both kinds, (mean beta a + mean beta b) / 2, without gradient.

    (Jung et al. 2024, arXiv 2404.04656, section 3.3.) Give the whole global batch.

    Args:
      policy_chosen: floating ``[B]``, and the three others alike, as in :func:`dpo`.
      policy_rejected: the policy's, of the rejected answer.
      reference_chosen: the reference's, of the chosen answer.
      reference_rejected: the reference's, of the rejected answer.
      mask: bool ``[B]``: which rows are pairs.
      beta: above 0.

    Returns:
      A scalar, at least float32; 0 for an empty mask.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return jax.lax.stop_gradient(beta * (masked_mean(a, mask) + masked_mean(b, mask)) / 2)
