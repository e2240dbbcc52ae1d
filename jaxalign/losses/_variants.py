"""Further losses of a pair's four sequence log-probabilities.

``a``, ``b`` and ``h = a - b`` as in ``_preference``: the log-ratios log pi/ref of the chosen and the rejected answer,
and their difference. Arguments, results and errors are those of :func:`dpo`.
"""

import jax
import jax.numpy as jnp

from jaxalign.losses._checks import in_range, positive
from jaxalign.losses._preference import log_ratios

Array = jax.Array
sigmoid, log_sigmoid = jax.nn.sigmoid, jax.nn.log_sigmoid


def sppo_hard(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Self-play preference optimisation with hard labels.

        L = (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2

    (Wu et al. 2024, arXiv 2405.00675, equation 4.7, the winner's probability taken as 1.) It fixes each log-ratio, not
    only their difference. Arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return jnp.square(a - 1 / (2 * beta)) + jnp.square(b + 1 / (2 * beta))


def nca(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Noise contrastive alignment, of a pair.

        L = -log sigmoid(beta a) - (log sigmoid(-beta a) + log sigmoid(-beta b)) / 2

    (Chen et al. 2024, arXiv 2402.05369, equation 11 with two answers.) Arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -log_sigmoid(beta * a) - (log_sigmoid(-beta * a) + log_sigmoid(-beta * b)) / 2


def apo_zero(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Anchored preference optimisation for answers better than the policy's.

        L = 1 - sigmoid(beta a) + sigmoid(beta b)

    Raises the chosen, lowers the rejected. (D'Oosterlinck et al. 2024, arXiv 2408.06266, section 4.) Arguments and
    result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return sigmoid(-beta * a) + sigmoid(beta * b)


def apo_down(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Anchored preference optimisation for answers worse than the policy's.

        L = sigmoid(beta a) + 1 - sigmoid(beta h)

    Lowers the chosen too, but less than the rejected. (D'Oosterlinck et al. 2024, arXiv 2408.06266, section 4.)
    Arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return sigmoid(beta * a) + sigmoid(-beta * (a - b))


def exo(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    label_smoothing: float,
) -> Array:
    """Efficient exact optimisation, of a pair: the reverse KL to the smoothed label.

        L = s(beta h) (log s(beta h) - log(1 - e)) + s(-beta h) (log s(-beta h) - log e),    s = sigmoid

    (Ji et al. 2024, arXiv 2402.00856, equation 17.) Needs e > 0: a certain label makes the reverse KL infinite.
    Arguments and result as in :func:`dpo`.

    Raises:
      ValueError: ``label_smoothing`` outside (0, 0.5].
    """
    positive(beta=beta)
    in_range(0, 0.5, open_low=True, label_smoothing=label_smoothing)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    h = beta * (a - b)
    smoothing = jnp.asarray(label_smoothing, h.dtype)
    kept = sigmoid(h) * (log_sigmoid(h) - jnp.log1p(-smoothing))
    return kept + sigmoid(-h) * (log_sigmoid(-h) - jnp.log(smoothing))


def discopop(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    temperature: float = 0.05,
) -> Array:
    """Discovered preference optimisation: the logistic and the exponential loss, blended by the margin.

        L = -(1 - m) log sigmoid(beta h) + m exp(-beta h),    m = sigmoid(beta h / temperature)

    (Lu et al. 2024, arXiv 2406.08414, log-ratio modulated loss.) The exponent is kept within +-20. Arguments and result
    as in :func:`dpo`.
    """
    positive(beta=beta, temperature=temperature)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    h = beta * (a - b)
    modulation = sigmoid(h / temperature)
    # sigmoid(-x) is 1 - sigmoid(x) without the cancellation.
    return -sigmoid(-h / temperature) * log_sigmoid(h) + modulation * jnp.exp(-jnp.clip(h, -20, 20))
