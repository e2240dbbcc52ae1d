"""How far a policy moved from its reference, measured on its own samples."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxalign.evaluation._bootstrap import Interval, bootstrap_interval
from jaxalign.losses import kl_estimate

__all__ = ["SequenceKL", "sequence_kl"]


@dataclass(frozen=True)
class SequenceKL:
    """Sequence-level KL(policy || reference) in nats per sequence, by two estimators.

    ``k1`` is unbiased and can be negative on a sequence; ``k3`` is unbiased too, never negative, and usually of lower
    variance close to the reference and of higher variance far from it. Far apart means: too few samples.
    """

    k1: Interval
    k3: Interval
    k1_per_sequence: np.ndarray
    k3_per_sequence: np.ndarray


def sequence_kl(
    policy_log_probs: npt.ArrayLike,
    reference_log_probs: npt.ArrayLike,
    mask: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> SequenceKL:
    """Estimate KL(policy || reference) of whole sequences from the policy's samples.

    k1 = sum_t log pi(y_t) - log ref(y_t);   k3 = sum_t (exp(-d_t) - 1 + d_t) with d_t the same difference

    Both have the sequence-level KL as their mean when ``y ~ pi`` at the temperature of the log-probs: given the tokens
    before it, each token's estimate is unbiased for that step's KL, and the chain rule adds them up.

    Args:
        policy_log_probs, reference_log_probs: ``[B, T]`` log-probs of the sampled tokens, in nats.
        mask: ``[B, T]`` bool, the sampled tokens, EOS included. What lies elsewhere is not read.
        groups: ``[B]`` the prompt of each sequence, resampled as a whole; each its own where left out.
        level: coverage of the intervals.
        seed: of the bootstrap.

    Raises:
        ValueError: shapes that differ, or a log-prob under the mask that is not finite.
    """
    policy = np.asarray(policy_log_probs, np.float64)
    reference = np.asarray(reference_log_probs, np.float64)
    keep = np.asarray(mask, bool)
    if not (policy.shape == reference.shape == keep.shape) or policy.ndim != 2:
        raise ValueError(f"expected one shape [B, T], got {policy.shape}, {reference.shape} and {keep.shape}")
    if not (np.isfinite(policy[keep]).all() and np.isfinite(reference[keep]).all()):
        raise ValueError("a log-prob under the mask is not finite")
    policy, reference = np.where(keep, policy, 0.0), np.where(keep, reference, 0.0)
    # Sums in float64 on the host; a token's own estimate needs no more precision than its log-probs have.
    k1 = (policy - reference).sum(axis=1)
    k3 = np.asarray(kl_estimate(jnp.asarray(policy), jnp.asarray(reference), estimator="k3"), np.float64).sum(axis=1)
    return SequenceKL(
        k1=bootstrap_interval(k1, groups=groups, level=level, seed=seed),
        k3=bootstrap_interval(k3, groups=groups, level=level, seed=seed),
        k1_per_sequence=k1,
        k3_per_sequence=k3,
    )
