"""DPO under other divergences: what takes the log-ratio's place (Wang et al. 2023, arXiv 2309.16240, table 2).

Constraining the policy by an f-divergence instead of the reverse KL replaces each log-ratio x = log pi/ref by f'(e^x),
up to a constant that cancels in the pair. So transform both log-ratios and give them to any pair loss with a reference
of zeros:

    a = forward_kl_ratio(policy_chosen - reference_chosen)
    b = forward_kl_ratio(policy_rejected - reference_rejected)
    loss = dpo(a, b, jnp.zeros_like(a), jnp.zeros_like(b), beta=beta)
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_scores

Array = jax.Array


def reverse_kl_ratio(log_ratio: Array) -> Array:
    """The reverse KL's transform, plain DPO: x itself, at least float32. Any shape."""
    (log_ratio,) = as_scores(log_ratio)
    return log_ratio


def forward_kl_ratio(log_ratio: Array) -> Array:
    """The forward KL's transform: -exp(-x), x kept within +-20 (no gradient outside). Any shape, at least float32."""
    (log_ratio,) = as_scores(log_ratio)
    return -jnp.exp(-jnp.clip(log_ratio, -20, 20))


def jensen_shannon_ratio(log_ratio: Array) -> Array:
    """The Jensen-Shannon divergence's transform: log sigmoid(x). Any shape, at least float32."""
    (log_ratio,) = as_scores(log_ratio)
    return jax.nn.log_sigmoid(log_ratio)


def alpha_divergence_ratio(log_ratio: Array, *, alpha: float) -> Array:
    """The alpha divergence's transform: exp(-alpha x) / (-alpha).

    alpha = 1 is the forward KL; towards 0 it becomes the reverse KL (plus a constant). ``alpha x`` is kept within +-20.

    Args:
      log_ratio: floating, any shape.
      alpha: not 0.

    Raises:
      ValueError: alpha is 0.
    """
    if isinstance(alpha, int | float) and alpha == 0:
        raise ValueError("alpha must not be 0: the limit is reverse_kl_ratio")
    (log_ratio,) = as_scores(log_ratio)
    return jnp.exp(-jnp.clip(alpha * log_ratio, -20, 20)) / -alpha


def divergence_ratio(
    log_ratio: Array,
    *,
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"],
    alpha: float = 0.5,
) -> Array:
    """The transform of the divergence of that name; ``alpha`` is read by the alpha divergence.

    Raises:
      ValueError: a divergence of another name.
    """
    if divergence == "alpha":
        return alpha_divergence_ratio(log_ratio, alpha=alpha)
    transforms = {
        "reverse_kl": reverse_kl_ratio,
        "forward_kl": forward_kl_ratio,
        "jensen_shannon": jensen_shannon_ratio,
    }
    if divergence not in transforms:
        raise ValueError(f"divergence must be one of {', '.join([*transforms, 'alpha'])}, not {divergence!r}")
    return transforms[divergence](log_ratio)
