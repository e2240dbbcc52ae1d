"""Win rates from outcomes: what becomes of ties, of answers that name no winner, and how sure the rate is."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, bootstrap_interval
from jaxalign.evaluation._wilson import wilson_interval

__all__ = ["Outcome", "TieRule", "WinRate", "win_rate"]

Outcome = Literal["win", "tie", "lose", "invalid"]
"""Of one comparison, for the method in question; "invalid" named no winner: counted, and left out of every rate."""

TieRule = Literal["half", "exclude", "separate"]
"""A tie is half a win; or is left out, as if it had not been judged; or is neither a win nor a loss, but was judged."""

_SCORES: dict[TieRule, dict[Outcome, float]] = {
    "half": {"win": 1.0, "tie": 0.5, "lose": 0.0, "invalid": math.nan},
    "exclude": {"win": 1.0, "tie": math.nan, "lose": 0.0, "invalid": math.nan},
    "separate": {"win": 1.0, "tie": 0.0, "lose": 0.0, "invalid": math.nan},
}


@dataclass(frozen=True)
class WinRate:
    """How often a method wins, and what was counted."""

    wins: int
    ties: int
    losses: int
    invalid: int
    tie_rule: TieRule
    wilson: Interval
    """Outcomes taken as independent; too wide where ties are halves."""
    bootstrap: Interval
    """Prompts resampled as a whole; [0, 1] where there is but one. Where prompts with several outcomes all agree it
    would have no width, and is Wilson's of as many outcomes as there are prompts; of independent outcomes that all
    agree it has none: read ``wilson`` there."""
    grouped: bool
    """Whether several outcomes share a prompt, so that they are not independent."""

    @property
    def rate(self) -> float:
        """(wins + ties / 2) / judged, wins / (wins + losses), or wins / judged, by the tie rule."""
        return self.wilson.estimate

    @property
    def interval(self) -> Interval:
        """The one to report: Wilson's of independent outcomes, the bootstrap's where prompts have several."""
        return self.bootstrap if self.grouped else self.wilson

    @property
    def judged(self) -> int:
        """Outcomes that named a winner or a tie."""
        return self.wins + self.ties + self.losses

    @property
    def counted(self) -> int:
        """Outcomes that the rate is over."""
        return self.judged - (self.ties if self.tie_rule == "exclude" else 0)

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n), as papers print it."""
        return math.sqrt(self.rate * (1 - self.rate) / self.counted)


def win_rate(
    outcomes: Sequence[Outcome],
    *,
    ties: TieRule = "half",
    groups: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate:
    """The share of comparisons won, with Wilson's and the bootstrap's interval.

    With ties as halves or left out, swapping the sides maps the rate to 1 - rate; "separate" does not: the rate of
    wins and that of losses then add up to 1 minus that of ties.

    Args:
        outcomes: one a comparison.
        ties: what a tie is.
        groups: ``[N]`` the prompt of each comparison where prompts have several; each its own where left out.
        level, resamples, seed: as in ``bootstrap_interval``.

    Raises:
        InputError: no outcome that counts (none at all, all invalid, or all ties with ``ties="exclude"``), an outcome
            or a tie rule that is unknown, or groups of another number.
    """
    scores = outcome_scores(outcomes, ties)
    counts = Counter(outcomes)
    kept = np.isfinite(scores)
    number = int(kept.sum())
    if not number:
        raise InputError(
            f"win_rate: nothing to rate among {len(outcomes)} outcomes ({counts['tie']} ties, "
            f"{counts['invalid']} invalid, ties: {ties})"
        )
    labels = np.arange(number)
    if groups is not None:
        if len(groups) != len(outcomes):
            raise InputError(f"win_rate: {len(outcomes)} outcomes but {len(groups)} groups")
        labels = group_index([group for group, keep in zip(groups, kept, strict=True) if keep])
    units = int(labels.max()) + 1
    rate = float(scores[kept].mean())
    bootstrap = Interval(rate, 0.0, 1.0)
    if units > 1:
        bootstrap = bootstrap_interval(scores[kept], groups=labels, level=level, resamples=resamples, seed=seed)
        if units < number and bootstrap.low == bootstrap.high:  # nothing varies, which does not make it certain
            bootstrap = wilson_interval(rate, units, level=level)
    return WinRate(
        wins=counts["win"],
        ties=counts["tie"],
        losses=counts["lose"],
        invalid=counts["invalid"],
        tie_rule=ties,
        wilson=wilson_interval(rate, number, level=level),
        bootstrap=bootstrap,
        grouped=units < number,
    )


def outcome_scores(outcomes: Sequence[Outcome], ties: TieRule) -> np.ndarray:
    """``[N]``: 1 a win, 0 a loss, a tie by its rule, NaN what is left out. Raises ``InputError`` for other words."""
    if ties not in _SCORES:
        raise InputError(f"ties is {ties!r}, must be one of {', '.join(get_args(TieRule))}")
    unknown = next((outcome for outcome in outcomes if outcome not in get_args(Outcome)), None)
    if unknown is not None:
        raise InputError(f"outcome {unknown!r}: must be one of {', '.join(get_args(Outcome))}")
    return np.array([_SCORES[ties][outcome] for outcome in outcomes], np.float64)


def group_index(labels: Sequence[Hashable]) -> np.ndarray:
    """Each label's number in order of first appearance, ``[N]``."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int64)
