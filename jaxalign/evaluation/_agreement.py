"""Do raters say the same: shares of agreeing pairs, Cohen's kappa, Krippendorff's alpha, with intervals over items."""

from collections.abc import Callable, Hashable, Sequence

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
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How often a rater agrees with others: of all (its label, another's label) of one item, the share that are equal.

    As the DPO paper has it of a judge and the people asked about the same pairs. Items are resampled.

    Args:
        first: ``[N]`` labels, None where the rater said nothing.
        second: ``[N]`` of each item the labels of the others, none, one or several.
        groups: ``[N]`` what is resampled as a whole, such as the prompt of each item; every item alone where left out.

    Raises:
        InputError: sequences of different length, or fewer than two items that both labelled.
    """
    if len(first) != len(second):
        raise InputError(f"agreement: {len(first)} labels of the first rater but {len(second)} items of the others")
    given = [[label for label in others if label is not None] if own is not None else []
             for own, others in zip(first, second, strict=True)]  # fmt: skip
    agreeing = [sum(label == own for label in others) for own, others in zip(first, given, strict=True)]
    columns = np.stack([agreeing, [len(others) for others in given]], axis=1)
    return _statistic("agreement", _ratio, columns, groups, level, resamples, seed)


def agreement_within(
    ratings: Sequence[Sequence[Label | None]],
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """How often raters agree with one another: of all pairs of labels of one item, the share that are equal.

    Args:
        ratings: ``[N]`` of each item its labels; items with fewer than two say nothing.
        groups: as in ``agreement_between``.

    Raises:
        InputError: fewer than two items with two labels.
    """
    columns = np.zeros((len(ratings), 2))
    for index, labels in enumerate(ratings):
        counts = np.bincount(group_index([label for label in labels if label is not None]), minlength=1)
        columns[index] = (counts * (counts - 1)).sum() / 2, counts.sum() * (counts.sum() - 1) / 2
    return _statistic("agreement", _ratio, columns, groups, level, resamples, seed)


def cohen_kappa(
    first: Sequence[Label | None],
    second: Sequence[Label | None],
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Agreement of two raters beyond chance (Cohen 1960): kappa = (p_o - p_e) / (1 - p_e).

    p_o is the share of items on which they agree, p_e = sum_k p_first(k) p_second(k) what their own label frequencies
    give by chance. Items that one of them left out do not count. Of the resamples those without a kappa (one label
    only) are left out. ``groups`` as in ``agreement_between``.

    Raises:
        InputError: sequences of different length, fewer than two items, or both using one same label throughout.
    """
    if len(first) != len(second):
        raise InputError(f"cohen_kappa: {len(first)} labels of the first rater but {len(second)} of the second")
    kept = [index for index in range(len(first)) if first[index] is not None and second[index] is not None]
    numbers = group_index([label for index in kept for label in (first[index], second[index])]).reshape(-1, 2)
    size = int(numbers.max(initial=0)) + 1
    tables = np.zeros((len(first), size * size))
    tables[kept, numbers[:, 0] * size + numbers[:, 1]] = 1

    def kappa(sums: np.ndarray) -> np.ndarray:
        table = (sums / sums.sum(axis=1, keepdims=True)).reshape(-1, size, size)
        observed = np.trace(table, axis1=1, axis2=2)
        chance = (table.sum(axis=2) * table.sum(axis=1)).sum(axis=1)
        return _beyond_chance(1 - observed, 1 - chance)

    return _statistic("cohen_kappa", kappa, tables, groups, level, resamples, seed)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Label | None]],
    *,
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Agreement of any number of raters beyond chance, labels missing or not: alpha = 1 - D_o / D_e, nominal.

    With n_uc the raters who gave item u the label c, m_u its raters and n the labels of all items with m_u >= 2
    (Krippendorff 2004, section 11.3):

        D_o = (1 / n) sum_u sum_{c != k} n_uc n_uk / (m_u - 1)        D_e = sum_{c != k} n_c n_k / (n (n - 1))

    The interval resamples items, as all others here (Krippendorff's own bootstrap draws pairs of labels).

    Args:
        ratings: ``[N]`` of each item its labels, one a rater (None where missing) in any order.
        groups: as in ``agreement_between``.

    Raises:
        InputError: fewer than two items with two labels, or one label throughout.
    """
    given = [[label for label in labels if label is not None] for labels in ratings]
    given = [labels if len(labels) > 1 else [] for labels in given]
    numbers = iter(group_index([label for labels in given for label in labels]).tolist())
    items = [[next(numbers) for _ in labels] for labels in given]
    size = max((number for item in items for number in item), default=0) + 1
    counts = np.array([np.bincount(item, minlength=size) for item in items], np.float64).reshape(-1, size)
    raters = counts.sum(axis=1)
    disagreeing = (raters**2 - (counts**2).sum(axis=1)) / np.maximum(raters - 1, 1)

    def alpha(sums: np.ndarray) -> np.ndarray:
        labels = sums[:, :-1]
        n = labels.sum(axis=1)
        expected = (n**2 - (labels**2).sum(axis=1)) / (n - 1)
        return _beyond_chance(sums[:, -1], expected)

    columns = np.concatenate([counts, disagreeing[:, None]], axis=1)
    return _statistic("krippendorff_alpha", alpha, columns, groups, level, resamples, seed)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """1 - observed / expected disagreement; NaN where chance alone would agree always (but for rounding)."""
    defined = expected > 1e-12
    return np.where(defined, 1 - observed / np.where(defined, expected, 1.0), np.nan)


def _statistic(
    name: str,
    statistic: Callable[[np.ndarray], np.ndarray],
    columns: np.ndarray,
    groups: Sequence[Hashable] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """A statistic of the sums of columns, ``[R, M] -> [R]``, with its interval over items or groups of them.

    An item that says nothing is a row of zeros.
    """
    if groups is not None and len(groups) != len(columns):
        raise InputError(f"{name}: {len(columns)} items but {len(groups)} groups")
    index = np.arange(len(columns)) if groups is None else group_index(groups)
    units = np.zeros((int(index.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(units, index, columns)
    units = units[units.any(axis=1)]
    count = len(units)
    if count < 2:
        raise InputError(f"{name}: needs at least two items that two raters labelled, got {count}")
    estimate = float(statistic(units.sum(axis=0)[None])[0])
    if not np.isfinite(estimate):
        raise InputError(f"{name}: every label is the same, so agreement beyond chance is undefined")
    means = resampled_means(units, resamples=resamples, seed=seed)
    drawn = np.concatenate([statistic(count * chunk) for chunk in means])
    return interval_of(estimate, drawn[np.isfinite(drawn)], count, level)
