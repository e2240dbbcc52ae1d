"""DPO and its nearest relatives: losses of a pair's four sequence log-probabilities.

Throughout, ``a`` is the chosen answer's log-ratio log pi/ref, ``b`` the rejected answer's, ``h = a - b``.
"""

import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_scores, in_range, positive

Array = jax.Array
log_sigmoid = jax.nn.log_sigmoid


def log_ratios(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array
) -> tuple[Array, Array]:
    """The checked log-ratios (a, b) of the chosen and the rejected answer, at least float32."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = as_scores(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected


def implicit_reward(policy: Array, reference: Array, *, beta: float) -> Array:
    """The reward that a policy is optimal for, up to a function of the prompt.

        r(x, y) = beta * (log pi(y|x) - log ref(y|x))

    (Rafailov et al. 2023, arXiv 2305.18290, section 4.)

    Args:
      policy: floating, any shape: log-probabilities of whole answers, nats.
      reference: the same shape.
      beta: above 0.

    Returns:
      The same shape, at least float32.
    """
    positive(beta=beta)
    policy, reference = as_scores(policy, reference)
    return beta * (policy - reference)


def dpo(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Array:
    """Direct preference optimisation.

        L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),    h = log pi/ref(y_w) - log pi/ref(y_l)

    (Rafailov et al. 2023, arXiv 2305.18290, equation 7.) With e = ``label_smoothing`` above 0 it is cDPO; TRL's
    "sigmoid" ignores that option.
    Its gradient is -beta sigmoid(-beta h) (grad log pi(y_w) - grad log pi(y_l)) at e = 0; at pi = ref the loss is ln 2.

    Args:
      policy_chosen: floating ``[B]`` (or one other shape for all four): the policy's log-probability of the chosen
        answer, summed over its tokens, EOS included; nats.
      policy_rejected: the policy's, of the rejected answer.
      reference_chosen: the frozen reference's, of the chosen answer.
      reference_rejected: the reference's, of the rejected answer.
      beta: strength of the KL constraint, above 0.
      label_smoothing: the probability that a label is flipped, in [0, 0.5].

    Returns:
      One value a pair ``[B]``, at least float32.

    Raises:
      AssertionError: an input that is not floating, or shapes that differ.
      ValueError: a hyper-parameter outside its range.
    """
    positive(beta=beta)
    in_range(0, 0.5, label_smoothing=label_smoothing)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    h = beta * (a - b)
    return -(1 - label_smoothing) * log_sigmoid(h) - label_smoothing * log_sigmoid(-h)


def unweighted_dpo(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """DPO's gradient with its weight sigmoid(-beta h) replaced by 1: the ablation that degenerates in the paper.

        L = -beta h,    gradient -beta (grad log pi(y_w) - grad log pi(y_l))

    Nothing stops a pair that is already ordered from being pushed further, so the loss has no minimum (Rafailov et al.
    2023, arXiv 2305.18290, section 4 and appendix table 3). Arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -beta * (a - b)


def ipo(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Identity preference optimisation.

        L = (h - 1 / (2 beta))^2

    (Azar et al. 2023, arXiv 2310.12036, equation 17, beta there called tau.) Convention: log-probabilities **summed**
    over tokens, as in the paper. TRL averages them: for its form make all four with
    ``sequence_log_prob(..., average=True)``; beta then means something else (a margin of 1/(2 beta) nats *a token*).
    Other arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return jnp.square(a - b - 1 / (2 * beta))


def hinge(
    policy_chosen: Array, policy_rejected: Array, reference_chosen: Array, reference_rejected: Array, *, beta: float
) -> Array:
    """Hinge loss on the normalised likelihood ratio: L = max(0, 1 - beta h).

    (SLiC, Zhao et al. 2023, arXiv 2305.10425, with a reference model as in RSO, Liu et al. 2023, arXiv 2309.06657,
    equation 9.) Arguments and result as in :func:`dpo`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return jax.nn.relu(1 - beta * (a - b))


def robust_dpo(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    label_smoothing: float,
) -> Array:
    """DPO made unbiased under flipped labels.

        L = ((1 - e) * -log sigmoid(beta h) - e * -log sigmoid(-beta h)) / (1 - 2 e)

    (Chowdhury et al. 2024, arXiv 2403.00409, equation 12.) Its expectation over labels flipped with probability e is
    the clean DPO loss; one value may be negative. Other arguments and result as in :func:`dpo`.

    Raises:
      ValueError: ``label_smoothing`` outside [0, 0.5).
    """
    positive(beta=beta)
    in_range(0, 0.5, open_high=True, label_smoothing=label_smoothing)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    h = beta * (a - b)
    kept, flipped = -log_sigmoid(h), -log_sigmoid(-h)
    return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
