"""Two methods judged on the same items: is one better, or did it get the easier ones?"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, paired_bootstrap_difference
from jaxalign.evaluation._wins import Outcome, TieRule, outcome_scores

__all__ = ["PairedTest", "paired_test", "paired_tests"]


@dataclass(frozen=True)
class PairedTest:
    """``first`` minus ``second`` in win rate against one reference, on the items where both were judged."""

    first: str
    second: str
    difference: Interval
    """Of the rates, items resampled in pairs."""
    first_better: int
    """Items on which the first did better: won where the other lost or tied ..."""
    second_better: int
    items: int
    left_out: int
    """Items without an outcome that counts for one of the two."""
    sign_p: float
    """Exact two-sided binomial test of better against worse items; without ties this is McNemar's exact test."""
    permutation_p: float
    """Exact two-sided test of the sum of differences under flipped signs: a win against a loss weighs two ties."""
    holm_p: float
    """The permutation's p among all tests made together (Holm 1979); its own where there is one."""


def paired_test(
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    *,
    names: tuple[str, str] = ("first", "second"),
    ties: TieRule = "half",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Compare two methods by their outcomes against one reference; element ``i`` of both belongs to one item.

    With d_i in {-1, -1/2, 0, 1/2, 1} the difference of item i:

        sign_p = min(1, 2 P[B <= min(n+, n-)]), B ~ Binomial(n+ + n-, 1/2)
        permutation_p = P[|sum_i s_i d_i| >= |sum_i d_i|], s_i = -1 or 1 alike

    both computed, not simulated. Items are taken as independent: one comparison a prompt.

    Raises:
        InputError: sequences of different length, fewer than two items that count for both, or an unknown word.
    """
    if len(first) != len(second):
        raise InputError(f"paired_test: {len(first)} outcomes of {names[0]} but {len(second)} of {names[1]}")
    a, b = outcome_scores(first, ties), outcome_scores(second, ties)
    kept = np.isfinite(a) & np.isfinite(b)
    if kept.sum() < 2:
        raise InputError(f"paired_test: {names[0]} and {names[1]} share {int(kept.sum())} judged items, two are needed")
    halves = np.rint(2 * (a[kept] - b[kept])).astype(int)
    p = _permutation(halves)
    better, worse = int((halves > 0).sum()), int((halves < 0).sum())
    return PairedTest(
        first=names[0],
        second=names[1],
        difference=paired_bootstrap_difference(a[kept], b[kept], level=level, resamples=resamples, seed=seed),
        first_better=better,
        second_better=worse,
        items=int(kept.sum()),
        left_out=int((~kept).sum()),
        sign_p=min(1.0, 2 * float(special.bdtr(min(better, worse), better + worse, 0.5))),
        permutation_p=p,
        holm_p=p,
    )


def paired_tests(
    outcomes: Mapping[str, Sequence[Outcome]], *, ties: TieRule = "half", seed: int = 0
) -> list[PairedTest]:
    """Every two of several methods judged on the same items against one reference; arguments as ``paired_test``."""
    return adjusted([
        paired_test(outcomes[first], outcomes[second], names=(first, second), ties=ties, seed=seed)
        for first, second in itertools.combinations(outcomes, 2)
    ])  # fmt: skip


def adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Tests that are made together, with ``holm_p`` among them."""
    found, largest = [0.0] * len(tests), 0.0
    for rank, index in enumerate(sorted(range(len(tests)), key=lambda index: tests[index].permutation_p)):
        largest = max(largest, min(1.0, (len(tests) - rank) * tests[index].permutation_p))
        found[index] = largest
    return [replace(test, holm_p=p) for test, p in zip(tests, found, strict=True)]


def _permutation(halves: np.ndarray) -> float:
    """Of differences in halves, -2 .. 2: ones and twos with random signs are two binomials, summed exactly."""
    ones, twos = int((np.abs(halves) == 1).sum()), int((np.abs(halves) == 2).sum())
    sums = np.add.outer(2 * np.arange(ones + 1) - ones, 2 * (2 * np.arange(twos + 1) - twos))
    weights = np.multiply.outer(_fair(ones), _fair(twos))
    return min(1.0, float(weights[np.abs(sums) >= abs(int(halves.sum()))].sum()))


def _fair(count: int) -> np.ndarray:
    """P[Binomial(count, 1/2) = k], k = 0 .. count."""
    k = np.arange(count + 1)
    logs = special.gammaln(count + 1) - special.gammaln(k + 1) - special.gammaln(count - k + 1)
    return np.exp(logs - count * np.log(2.0))
