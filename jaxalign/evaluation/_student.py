"""The interval of an estimate of few training seeds and many items, which are too few to resample together."""

from collections.abc import Sequence

import numpy as np
from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval

__all__ = ["student_interval"]


def student_interval(estimate: float, parts: Sequence[tuple[float, int]], *, level: float = 0.95) -> Interval:
    """Student's interval of an estimate whose variance is a sum of estimated parts.

        estimate -+ t_v sqrt(sum_k s_k),   v = (sum_k s_k)^2 / sum_k (s_k^2 / d_k)   (Welch and Satterthwaite)

    The bootstrap of three seeds covers the truth in three cases of four: no resample lies beyond the best of them.

    Args:
        estimate: in any unit.
        parts: s_k, d_k: variances of the estimate, in its unit squared, and their degrees of freedom; of a mean of n
            values their variance / n, and n - 1. None, or all 0: an interval without width.
        level: coverage, e.g. 0.95.

    Raises:
        InputError: a level outside (0, 1), a part that is negative or has no degree of freedom.
    """
    if not 0.0 < level < 1.0 or any(part < 0 or degrees < 1 for part, degrees in parts):
        raise InputError(
            f"student_interval: needs a level in (0, 1), variances that are not negative and degrees of freedom of at "
            f"least 1, got level {level} and parts {list(parts)}"
        )
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / degrees for part, degrees in parts)
    reach = float(special.stdtrit(variance**2 / squares, 0.5 + level / 2) * np.sqrt(variance)) if squares else 0.0
    return Interval(estimate, estimate - reach, estimate + reach)
