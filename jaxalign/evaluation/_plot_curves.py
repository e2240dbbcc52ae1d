"""How numbers went over training: small panels over the step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.evaluation._plot import COLOURS, STYLE, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_ACROSS = 3


def plot_curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> "Figure":
    """A panel a name: ``{name: [(step, value), ...]}``, each with an axis of its own.

    Needs matplotlib (the ``eval`` extra). Raises ``InputError`` for no curve.
    """
    if not curves:
        raise InputError("plot_curves: no curves")
    matplotlib = load_matplotlib()
    down = -(-len(curves) // _ACROSS)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9.0, 0.4 + 1.9 * down), layout="constrained")
        panels = figure.subplots(down, _ACROSS, squeeze=False).ravel()
        for axes, (name, curve) in zip(panels, curves.items(), strict=False):
            marker = "o" if len(curve) < 20 else ""
            axes.plot(*zip(*curve, strict=True), color=COLOURS[0], linewidth=1.1, marker=marker, markersize=3)
            axes.set_title(name, fontsize=8.5)
            axes.tick_params(labelsize=7.5)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        for axes in panels[max(len(curves) - _ACROSS, 0) : len(curves)]:
            axes.set_xlabel("step", fontsize=8.0)
    return figure
