"""Scores against what they cost: a line a method, its intervals, and the single runs behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._plot import COLOURS, LINES, MARKERS, STYLE, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ScorePoint", "plot_scores"]


@dataclass(frozen=True)
class ScorePoint:
    """A score at a size, a time, or another cost."""

    cost: float
    score: Interval
    runs: Sequence[float] = ()
    """Scores of the training seeds behind it."""


def plot_scores(
    panels: Mapping[str, Mapping[str, Sequence[ScorePoint]]],
    *,
    label: str = "score",
    target: float | None = None,
    logarithmic: bool = True,
) -> "Figure":
    """A panel a cost: ``{cost: {method: [points in order of cost]}}``, one axis of scores for all.

    Bars are the points' intervals, small crosses their runs; ``target`` is a grey line. Needs matplotlib (the ``eval``
    extra).

    Raises:
      InputError: no points, or a cost that is not above 0 on a logarithmic axis.
    """
    points = [point for methods in panels.values() for curve in methods.values() for point in curve]
    if not points:
        raise InputError("plot_scores: no points")
    if logarithmic and (lowest := min(point.cost for point in points)) <= 0:
        raise InputError(f"plot_scores: a logarithmic axis has no place for the cost {lowest:g}")
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(4.2 * len(panels) + 1.2, 3.4), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (cost, methods) in zip(grid, panels.items(), strict=True):
            if target is not None:
                axes.axhline(target, color="0.6", linewidth=2.5, zorder=0, label="target")
            for place, (name, curve) in enumerate(methods.items()):
                _draw(axes, place, name, curve)
            axes.set_xlabel(cost)
            if logarithmic:
                axes.set_xscale("log")
        grid[0].set_ylabel(label, wrap=True)
        grid[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)
    return figure


def _draw(axes: "Axes", place: int, name: str, curve: Sequence[ScorePoint]) -> None:
    colour = COLOURS[place % len(COLOURS)]
    axes.plot(
        [point.cost for point in curve],
        [point.score.estimate for point in curve],
        color=colour,
        linestyle=LINES[place % len(LINES)],
        marker=MARKERS[place % len(MARKERS)],
        linewidth=1.3,
        markersize=4,
        label=name,
    )
    for point in curve:
        axes.plot([point.cost] * 2, [point.score.low, point.score.high], color=colour, linewidth=1.0, alpha=0.5)
        if len(point.runs) > 1:
            axes.plot(
                [point.cost] * len(point.runs), point.runs, linestyle="", marker="x", color=colour, markersize=3.5,
                alpha=0.6,
            )  # fmt: skip
