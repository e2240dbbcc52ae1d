"""How numbers went over training: small panels over the step."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxalign.errors import InputError
from jaxalign.evaluation._plot import COLOURS, LINES, MARKERS, STYLE, load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]

_ACROSS = 3


Curve = Sequence[tuple[float, float]]


def plot_curves(curves: Mapping[str, Curve | Mapping[str, Curve]]) -> "Figure":
    """A panel a name: ``{name: [(step, value), ...]}``, each with an axis of its own.

    Where a panel has several curves, ``{name: {label: [(step, value), ...]}}``, a colour, a marker and a line style a
    label, the same in all panels. Needs matplotlib (the ``eval`` extra). Raises ``InputError`` for no curve.
    """
    if not curves:
        raise InputError("plot_curves: no curves")
    matplotlib = load_matplotlib()
    down = -(-len(curves) // _ACROSS)
    labels = list(dict.fromkeys(label for panel in curves.values() if isinstance(panel, Mapping) for label in panel))
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9.0, 0.4 + 1.9 * down + 0.3 * bool(labels)), layout="constrained")
        panels = figure.subplots(down, _ACROSS, squeeze=False).ravel()
        lines = {}
        for axes, (name, panel) in zip(panels, curves.items(), strict=False):
            for label, curve in panel.items() if isinstance(panel, Mapping) else [("", panel)]:
                place = labels.index(label) if label else 0
                marker = MARKERS[place % len(MARKERS)] if len(curve) < 20 else ""
                style = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)]}
                (lines[label],) = axes.plot(*zip(*curve, strict=True), linewidth=1.1, marker=marker, ms=3, **style)
            axes.set_title(name, fontsize=8.5)
            axes.tick_params(labelsize=7.5)
        for axes in panels[len(curves) :]:
            axes.set_visible(False)
        for axes in panels[max(len(curves) - _ACROSS, 0) : len(curves)]:
            axes.set_xlabel("step", fontsize=8.0)
        if labels:
            figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=len(labels))
    return figure
