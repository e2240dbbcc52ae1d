"""Alignment via optimal transport: losses that compare distributions of log-ratios, so they sort the batch."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores, positive
from jaxalign.losses._preference import log_ratios

Array = jax.Array


def aot(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    mask: Array | None = None,
) -> Array:
    """Distributional preference optimisation, paired form.

        L_i = -log sigmoid(beta (sort(log pi(y_w) - log pi(y_l))_i - sort(log ref(y_w) - log ref(y_l))_i))

    (Melnyk et al. 2024, arXiv 2406.05882, section 3.) The policy's margins should dominate the reference's in
    distribution, not pair by pair. The sort couples rows: give the whole global batch; it cannot be accumulated over
    micro-batches.

    Args:
      policy_chosen: floating ``[B]``, and the three others alike, as in :func:`dpo`.
      policy_rejected: the policy's, of the rejected answer.
      reference_chosen: the reference's, of the chosen answer.
      reference_rejected: the reference's, of the rejected answer.
      beta: above 0.
      mask: bool ``[B]``, False for rows without a pair, or None. They sort last and give 0.

    Returns:
      ``[B]``, at least float32: one value a *rank* of the margin, smallest first, not a row.
    """
    positive(beta=beta)
    scores = as_scores(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _transport(scores[0] - scores[1], scores[2] - scores[3], beta, mask)


def aot_unpaired(
    policy_chosen: Array,
    policy_rejected: Array,
    reference_chosen: Array,
    reference_rejected: Array,
    *,
    beta: float,
    mask: Array | None = None,
) -> Array:
    """Distributional preference optimisation, unpaired form.

        L_i = -log sigmoid(beta (sort(a)_i - sort(b)_i)),    a, b = log pi/ref of the chosen, of the rejected answers

    (Melnyk et al. 2024, arXiv 2406.05882, section 3.) Chosen and rejected answers need not share prompts. Arguments and
    result as in :func:`aot`.
    """
    positive(beta=beta)
    a, b = log_ratios(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _transport(a, b, beta, mask)


def _transport(better: Array, worse: Array, beta: float, mask: Array | None) -> Array:
    chex.assert_rank([better, worse], 1)
    if mask is None:
        return -jax.nn.log_sigmoid(beta * (jnp.sort(better) - jnp.sort(worse)))
    mask = as_mask(mask, better)
    # The largest finite number sorts last; it is dropped before any arithmetic, so no gradient meets it.
    last = jnp.finfo(better.dtype).max
    kept = jnp.arange(better.shape[0]) < jnp.sum(mask)
    difference = [jnp.where(kept, jnp.sort(jnp.where(mask, side, last)), 0) for side in (better, worse)]
    loss = -jax.nn.log_sigmoid(beta * (difference[0] - difference[1]))
    return jnp.where(kept, loss, 0)
