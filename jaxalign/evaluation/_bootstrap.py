"""Intervals by resampling prompts: one primitive, everything else is a statistic of its means."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

__all__ = ["Interval", "bootstrap_interval", "paired_bootstrap_difference"]

_CHUNK = 1 << 23  # resampled indices held at once


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the units of what was estimated."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(
    values: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of ``values`` with its bootstrap interval.

    Whole groups are resampled with replacement and the mean is taken over their values: give the prompt of each value
    where several come from one prompt, since those are not independent. The interval is the expanded percentile one
    (Hesterberg 2015, "What Teachers Should Know About the Bootstrap"): for ``n`` groups, quantiles at
    ``Phi(-+ sqrt(n / (n - 1)) * t_{n-1})`` instead of ``(1 -+ level) / 2``, because plain percentiles are too narrow
    by about ``sqrt((n - 1) / n)`` and ignore that the spread is estimated.

    Args:
        values: ``[N]`` finite numbers.
        groups: ``[N]`` labels (integers or strings), one group per value where left out.
        level: coverage, e.g. 0.95.
        resamples: how many resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: fewer than two groups, a value that is not finite, or shapes that differ.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"values must be a vector of finite numbers, got shape {array.shape}")
    columns = np.stack([array, np.ones_like(array)], axis=1)
    if groups is not None:
        labels = np.asarray(groups)
        if labels.shape != array.shape:
            raise ValueError(f"groups have shape {labels.shape}, values {array.shape}")
        _, index = np.unique(labels, return_inverse=True)
        columns = np.stack([np.bincount(index, weights=column) for column in columns.T], axis=1)
    sums = np.concatenate(list(resampled_means(columns, resamples=resamples, seed=seed)))
    return interval_of(float(array.mean()), sums[:, 0] / sums[:, 1], len(columns), level)


def paired_bootstrap_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    groups: npt.ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The mean of ``first - second`` with its bootstrap interval; element ``i`` of both belongs to one prompt.

    Pairs are resampled together, so what makes a prompt easy for both cancels. Arguments as ``bootstrap_interval``.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must have one shape, got {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, groups=groups, level=level, resamples=resamples, seed=seed)


def resampled_means(columns: np.ndarray, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Means of each column over rows drawn with replacement: chunks ``[r, M]`` of in all ``resamples`` rows.

    ``columns`` is ``[G, M]``; row ``g`` is one resampling unit. All columns share each draw.
    """
    for times in resampled_counts(len(columns), resamples=resamples, seed=seed):
        yield times @ columns / len(columns)


def resampled_counts(count: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``count`` units is drawn: chunks ``[r, count]`` of in all ``resamples`` rows."""
    generator = np.random.default_rng(seed)
    step = max(_CHUNK // count, 1)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def interval_of(estimate: float, resampled: np.ndarray, count: float, level: float) -> Interval:
    """The expanded percentile interval of resampled estimates over ``count`` units (degrees of freedom, plus one)."""
    if count < 2:
        raise ValueError(f"an interval needs at least two prompts, got {count}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    width = np.sqrt(count / (count - 1)) * special.stdtrit(count - 1, 0.5 + level / 2)
    low, high = np.quantile(resampled, [special.ndtr(-width), special.ndtr(width)])
    return Interval(estimate, float(low), float(high))
