"""The interval of a share, where outcomes are independent."""

import math

from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval

__all__ = ["wilson_interval"]


def wilson_interval(share: float, count: int, *, level: float = 0.95) -> Interval:
    """A share of ``count`` independent outcomes with Wilson's score interval (1927).

    The p with |share - p| <= z sqrt(p (1 - p) / n): it never leaves [0, 1], has a width where all outcomes agree, and
    covers as it says down to n of about 10. Outcomes of one half (ties) vary less than it assumes: it is then too wide.

    Raises:
        InputError: no outcome, a share outside [0, 1] or a level outside (0, 1).
    """
    if count < 1:
        raise InputError(f"wilson_interval: needs at least one outcome, got {count}")
    if not 0.0 <= share <= 1.0 or not 0.0 < level < 1.0:
        raise InputError(f"wilson_interval: share {share} and level {level} must lie in [0, 1] and (0, 1)")
    z = float(special.ndtri(0.5 + level / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # Rounding would leave the ends a hair off where all or none are right.
    return Interval(share, 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half)
