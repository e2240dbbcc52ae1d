"""How a cost grows with a size: log-log curves beside the line of proportion."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxalign.evaluation._plot import COLOURS, LINES, MARKERS, STYLE, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_growth"]


def plot_growth(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> "Figure":
    """A panel a cost: ``{cost: {what grows: [(size, cost), ...]}}``, both relative to the smallest.

    Both axes are logarithmic to base two; the grey line is growth in proportion. Needs matplotlib (the ``eval`` extra).
    """
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(3.4 * len(panels) + 0.6, 3.2), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        largest = max(size for curves in panels.values() for curve in curves.values() for size, _ in curve)
        for axes, (cost, curves) in zip(grid, panels.items(), strict=True):
            axes.plot([1, largest], [1, largest], color="0.7", linewidth=3, zorder=0, label="in proportion")
            for place, (name, curve) in enumerate(curves.items()):
                axes.plot(
                    *zip(*curve, strict=True),
                    color=COLOURS[place % len(COLOURS)],
                    linestyle=LINES[place % len(LINES)],
                    marker=MARKERS[place % len(MARKERS)],
                    linewidth=1.3,
                    markersize=4,
                    label=name,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.set_title(cost)
            axes.set_xlabel("size, relative to the smallest")
        grid[0].set_ylabel("cost, relative to the smallest")
        grid[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)
    return figure
