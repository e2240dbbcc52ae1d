"""Methods side by side: a mean, its interval, and the single runs behind it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._plot import STYLE, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_intervals"]

_COLOUR, _POINTS = "#0072B2", "#D55E00"


def plot_intervals(
    intervals: Mapping[str, Interval], *, points: Mapping[str, Sequence[float]] | None = None, label: str = ""
) -> "Figure":
    """A line a name, from top to bottom: the estimate with its interval, and small crosses where ``points`` lie.

    Needs matplotlib (the ``eval`` extra).
    """
    matplotlib = load_matplotlib()
    names = list(intervals)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(6.4, 0.9 + 0.32 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        for place, name in enumerate(reversed(names)):
            found = intervals[name]
            axes.plot([found.low, found.high], [place, place], color=_COLOUR, linewidth=1.6, solid_capstyle="butt")
            axes.plot([found.estimate], [place], marker="o", color=_COLOUR, markersize=5)
            own = (points or {}).get(name, ())
            if len(own) > 1:
                axes.plot(own, [place] * len(own), linestyle="", marker="x", color=_POINTS, markersize=4, zorder=3)
        axes.set_yticks(range(len(names)), list(reversed(names)))
        axes.set_xlabel(label, wrap=True)
        axes.grid(axis="y", visible=False)
    return figure
