"""Do raters say the same: shares of agreeing pairs, Cohen's kappa, Krippendorff's alpha, with intervals over items."""

from collections.abc import Hashable, Sequence

import numpy as np

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, interval_of, resampled_means
from jaxalign.evaluation._wins import group_index

__all__ = ["Label", "agreement_between", "agreement_within", "cohen_kappa", "krippendorff_alpha"]

Label = Hashable
"""What a rater said of an item, such as "win"; None where it said nothing."""


def agreement_between(
    first: Sequence[Label | None],
    second: Sequence[Sequence[Label | None]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How often a rater agrees with others: of all (its label, another's label) of one item, the share that are equal.

    As the DPO paper has it of a judge and the people asked about the same pairs. Items are resampled.

    Args:
        first: ``[N]`` labels, None where the rater said nothing.
        second: ``[N]`` of each item the labels of the others, none, one or several.

    Raises:
        InputError: sequences of different length, or fewer than two items that both labelled.
    """
    if len(first) != len(second):
        raise InputError(f"agreement: {len(first)} labels of the first rater but {len(second)} items of the others")
    items = []
    for own, others in zip(first, second, strict=True):
        given = [label for label in others if label is not None]
        if own is not None and given:
            items.append((sum(label == own for label in given), len(given)))
    return _ratio("agreement", items, level, resamples, seed)


def agreement_within(
    ratings: Sequence[Sequence[Label | None]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """How often raters agree with one another: of all pairs of labels of one item, the share that are equal.

    Args:
        ratings: ``[N]`` of each item its labels; items with fewer than two say nothing.

    Raises:
        InputError: fewer than two items with two labels.
    """
    items = []
    for labels in ratings:
        counts = np.bincount(group_index([label for label in labels if label is not None]), minlength=1)
        pairs = int(counts.sum() * (counts.sum() - 1)) // 2
        if pairs:
            items.append((int((counts * (counts - 1)).sum()) // 2, pairs))
    return _ratio("agreement", items, level, resamples, seed)


def cohen_kappa(
    first: Sequence[Label | None],
    second: Sequence[Label | None],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Agreement of two raters beyond chance (Cohen 1960): kappa = (p_o - p_e) / (1 - p_e).

    p_o is the share of items on which they agree, p_e = sum_k p_first(k) p_second(k) what their own label frequencies
    give by chance. Items that one of them left out do not count. Of the resamples those without a kappa (one label
    only) are left out.

    Raises:
        InputError: sequences of different length, fewer than two items, or both using one same label throughout.
    """
    if len(first) != len(second):
        raise InputError(f"cohen_kappa: {len(first)} labels of the first rater but {len(second)} of the second")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    numbers = group_index([label for pair in both for label in pair]).reshape(-1, 2)
    size = int(numbers.max(initial=0)) + 1
    tables = np.zeros((len(both), size * size))
    tables[np.arange(len(both)), numbers[:, 0] * size + numbers[:, 1]] = 1

    def kappa(means: np.ndarray) -> np.ndarray:
        table = means.reshape(-1, size, size)
        observed = np.trace(table, axis1=1, axis2=2)
        chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
        return _beyond_chance(1 - observed, 1 - chance)

    return _statistic("cohen_kappa", kappa, tables, level, resamples, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Label | None]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Agreement of any number of raters beyond chance, labels missing or not: alpha = 1 - D_o / D_e, nominal.

    With n_uc the raters who gave item u the label c, m_u its raters and n the labels of all items with m_u >= 2
    (Krippendorff 2004, section 11.3):

        D_o = (1 / n) sum_u sum_{c != k} n_uc n_uk / (m_u - 1)        D_e = sum_{c != k} n_c n_k / (n (n - 1))

    The interval resamples items, as all others here (Krippendorff's own bootstrap draws pairs of labels).

    Args:
        ratings: ``[N]`` of each item its labels, one a rater (None where missing) in any order.

    Raises:
        InputError: fewer than two items with two labels, or one label throughout.
    """
    given = [[label for label in labels if label is not None] for labels in ratings]
    given = [labels for labels in given if len(labels) > 1]
    numbers = iter(group_index([label for labels in given for label in labels]).tolist())
    items = [[next(numbers) for _ in labels] for labels in given]
    size = max((number for item in items for number in item), default=0) + 1
    counts = np.array([np.bincount(item, minlength=size) for item in items]).reshape(-1, size)
    raters = counts.sum(axis=1)
    disagreeing = (raters**2 - (counts**2).sum(axis=1)) / np.maximum(raters - 1, 1)
    columns = np.concatenate([disagreeing[:, None], counts], axis=1)

    def alpha(means: np.ndarray) -> np.ndarray:
        totals = means * len(items)
        labels = totals[:, 1:]
        n = labels.sum(axis=1)
        expected = (n**2 - (labels**2).sum(axis=1)) / (n - 1)
        return _beyond_chance(totals[:, 0], expected)

    return _statistic("krippendorff_alpha", alpha, columns, level, resamples, seed)


def _ratio(name: str, items: Sequence[tuple[int, int]], level: float, resamples: int, seed: int) -> Interval:
    columns = np.array(items, np.float64).reshape(-1, 2)
    return _statistic(name, lambda means: means[:, 0] / means[:, 1], columns, level, resamples, seed)


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - observed / expected disagreement; NaN where chance alone would agree always (but for rounding)."""
    defined = expected > 1e-12
    return np.where(defined, 1 - observed / np.where(defined, expected, 1.0), np.nan)


def _statistic(name: str, statistic, columns: np.ndarray, level: float, resamples: int, seed: int) -> Interval:
    """A statistic of the means of columns, ``[R, M] -> [R]``, with its interval over rows."""
    if len(columns) < 2:
        raise InputError(f"{name}: needs at least two items that two raters labelled, got {len(columns)}")
    estimate = float(statistic(columns.mean(axis=0)[None])[0])
    if not np.isfinite(estimate):
        raise InputError(f"{name}: every label is the same, so agreement beyond chance is undefined")
    drawn = np.concatenate([statistic(means) for means in resampled_means(columns, resamples=resamples, seed=seed)])
    return interval_of(estimate, drawn[np.isfinite(drawn)], len(columns), level)
