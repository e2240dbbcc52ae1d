"""Which policies are worth having, and one number a method: the Pareto front, the area under the frontier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval, interval_of
from jaxalign.evaluation._frontier import FrontierPoint, envelopes
from jaxalign.evaluation._student import student_interval

__all__ = ["AreaDifference", "FrontierArea", "frontier_area", "frontier_area_difference", "pareto_front"]

_STEPS = 100


def pareto_front(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no other beats: none has at most their KL and at least their reward, and better in one of them.

    In order of KL. Points of all methods together; estimates are compared, whatever their intervals.
    """

    def beats(one: FrontierPoint, other: FrontierPoint) -> bool:
        kl, reward = one.kl.estimate - other.kl.estimate, one.reward.estimate - other.reward.estimate
        return kl <= 0 <= reward and (kl < 0 or reward > 0)

    front = [point for point in points if not any(beats(other, point) for other in points)]
    return sorted(front, key=lambda point: point.kl.estimate)


@dataclass(frozen=True)
class FrontierArea:
    """A method's mean best reward over a range of KL budgets."""

    method: str
    kl_range: tuple[float, float]
    area: Interval
    """In units of reward."""
    runs: int
    reached: bool
    """Whether every run has a point at the range's end or beyond; a method that stops short keeps its best reward."""


def frontier_area(
    runs: Sequence[Sequence[FrontierPoint]],
    *,
    kl_range: tuple[float, float],
    level: float = 0.95,
    resamples: int = 1_000,
    seed: int = 0,
) -> list[FrontierArea]:
    """The normalised area under each method's frontier, comparable where the KL range is the same.

        area = 1 / (b - a) * integral_a^b R(k) dk,   R(k) the best reward within k nats (``interpolate_reward_at_kl``)

    by the trapezoid rule on 101 budgets. Several runs (training seeds) are averaged.

    Args:
        runs: of each run its points, of all methods, from the same prompts in all runs.
        kl_range: (a, b), nats per sequence.
        level, resamples, seed: of the intervals. With one run prompts are resampled; with several it is Student's
            (``student_interval``) of the variance between runs and that of the prompts, resampled jointly for all runs.

    Raises:
        InputError: no run, an empty range, or runs that lack a method.
        ValueError: as ``interpolate_reward_at_kl``.
    """
    measured = _envelopes_of(runs, kl_range, resamples, seed)
    found = []
    for method in dict.fromkeys(point.method for point in runs[0]):

        def area(curves: dict[str, np.ndarray], method: str = method) -> np.ndarray:
            return _mean_height(curves[method])

        interval, _ = _over_runs(measured, area, len(runs[0][0].kl_per_prompt), level)
        reached = all(far[method][-1] for _, _, far in measured)
        found.append(FrontierArea(method, kl_range, interval, len(runs), reached))
    return found


@dataclass(frozen=True)
class AreaDifference:
    """``method`` minus ``baseline`` in mean best reward over a range of KL budgets."""

    method: str
    baseline: str
    kl_range: tuple[float, float]
    difference: Interval
    """In units of reward."""
    by_run: tuple[float, ...]
    method_reached: bool
    """As ``FrontierArea.reached``."""
    baseline_reached: bool


def frontier_area_difference(
    runs: Sequence[Sequence[FrontierPoint]],
    method: str,
    baseline: str,
    *,
    kl_range: tuple[float, float],
    level: float = 0.95,
    resamples: int = 1_000,
    seed: int = 0,
) -> AreaDifference:
    """One method's area under the frontier minus another's: prompts are resampled jointly for both.

    Args and Raises: as ``frontier_area``; other methods' points are not read. Several runs are paired: what varies is
    the difference in each run, so a baseline that stands in all of them unchanged adds nothing to the spread. The
    interval is then over the method's runs alone.
    """
    chosen = [[point for point in points if point.method in (method, baseline)] for points in runs]
    for name in (method, baseline):
        if any(all(point.method != name for point in points) for points in chosen):
            raise InputError(f"frontier_area_difference: a run has no point of {name!r}")
    measured = _envelopes_of(chosen, kl_range, resamples, seed)

    def difference(curves: dict[str, np.ndarray]) -> np.ndarray:
        return _mean_height(curves[method]) - _mean_height(curves[baseline])

    interval, by_run = _over_runs(measured, difference, len(chosen[0][0].kl_per_prompt), level)
    ends = [all(far[name][-1] for _, _, far in measured) for name in (method, baseline)]
    return AreaDifference(method, baseline, kl_range, interval, tuple(by_run.tolist()), *ends)


_Envelopes = tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, list[bool]]]


def _envelopes_of(
    runs: Sequence[Sequence[FrontierPoint]], kl_range: tuple[float, float], resamples: int, seed: int
) -> list[_Envelopes]:
    """``envelopes`` of every run at 101 budgets; with one seed, so that the same prompts are drawn for all runs."""
    low, high = kl_range
    if not runs or not 0 <= low < high:
        raise InputError(f"frontier_area: needs a run and a KL range 0 <= a < b, got {len(runs)} runs and {kl_range}")
    methods = {point.method for point in runs[0]}
    for number, points in enumerate(runs, start=1):
        if {point.method for point in points} != methods:
            raise InputError(f"frontier_area: run {number} has other methods than run 1")
    budgets = np.linspace(low, high, _STEPS + 1).tolist()
    return [envelopes(points, budgets, resamples, seed) for points in runs]


def _over_runs(
    measured: Sequence[_Envelopes],
    statistic: Callable[[dict[str, np.ndarray]], np.ndarray],
    prompts: int,
    level: float,
) -> tuple[Interval, np.ndarray]:
    """The mean over runs of a statistic of the envelopes, its interval, and its value in every run ``[S]``."""
    values = np.array([statistic(estimates) for estimates, _, _ in measured])
    drawn = np.mean([statistic(resampled) for _, resampled, _ in measured], axis=0)
    estimate, count = float(values.mean()), len(values)
    if count == 1:
        return interval_of(estimate, drawn, prompts, level), values
    parts = [(float(values.var(ddof=1)) / count, count - 1), (float(drawn.var(ddof=1)), prompts - 1)]
    return student_interval(estimate, parts, level=level), values


def _mean_height(curve: np.ndarray) -> np.ndarray:
    """The trapezoid rule over the last axis, evenly spaced, divided by its length."""
    return (curve[..., :-1] + curve[..., 1:]).mean(axis=-1) / 2
