"""Win rates as figures: over temperature, over training, and wins, ties and losses as bars."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxalign.errors import InputError
from jaxalign.evaluation._judged import WinRatePoint
from jaxalign.evaluation._plot import COLOURS, LINES, MARKERS, STYLE, load_matplotlib
from jaxalign.evaluation._tables import Percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_pairwise", "plot_win_rate"]

_LABELS = {"temperature": "sampling temperature", "step": "training step"}
_PARTS = (("win", COLOURS[0], ""), ("tie", "#BBBBBB", ""), ("lose", COLOURS[1], "///"))


def plot_win_rate(points: Sequence[WinRatePoint], *, over: Literal["temperature", "step"], title: str = "") -> "Figure":
    """Win rate in percent over sampling temperature or training steps, with 95 % intervals.

    A colour and a marker a method; where points differ in opponent, axis or judge too, each combination is a curve with
    a line style of its own. Points without that number are left out. The grey line is 50 %: as often as the opponent.
    Needs matplotlib (the ``eval`` extra).

    Raises:
        InputError: no point has that number.
    """
    placed = [point for point in points if getattr(point, over) is not None]
    if not placed:
        raise InputError(f"plot_win_rate: no win rate has a {over}")
    besides = ("against", "axis", "judge", "step" if over == "temperature" else "temperature")
    told = [name for name in besides if len({getattr(point, name) for point in placed}) > 1]
    curves: dict[str, dict[str, list[WinRatePoint]]] = {}
    for point in placed:
        label = ", ".join([point.method, *(_worded(name, getattr(point, name)) for name in told)])
        curves.setdefault(point.method, {}).setdefault(label, []).append(point)
    opponents = {point.against for point in placed}
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(50, color="0.6", linewidth=0.8, zorder=0)
        for place, settings in enumerate(curves.values()):
            for style, (label, curve) in enumerate(settings.items()):
                _draw(axes, sorted(curve, key=lambda point: getattr(point, over)), over, label, place, style)
        values = sorted({getattr(point, over) for point in placed})
        if len(values) <= 12:
            axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set_xlabel(_LABELS[over])
        axes.set_ylabel(f"win rate against {opponents.pop()}, %" if len(opponents) == 1 else "win rate, %")
        axes.set_title(title)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)
    return figure


def _draw(axes: Any, curve: Sequence[WinRatePoint], over: str, label: str, place: int, style: int) -> None:
    colour = COLOURS[place % len(COLOURS)]
    x, intervals = [getattr(point, over) for point in curve], [point.wins.interval for point in curve]
    down = [100 * max(found.estimate - found.low, 0.0) for found in intervals]
    up = [100 * max(found.high - found.estimate, 0.0) for found in intervals]
    y = [100 * found.estimate for found in intervals]
    axes.errorbar(x, y, yerr=(down, up), fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, alpha=0.45)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=LINES[style % len(LINES)],
        marker=MARKERS[place % len(MARKERS)],
        markerfacecolor=colour if style % 2 == 0 else "white",
        markersize=4,
        linewidth=1.3,
        label=label,
    )


def plot_pairwise(rows: Sequence[Mapping[str, object]], *, title: str = "") -> "Figure":
    """Wins, ties and losses of every row of ``pairwise_rows`` as one bar of 100 %, the rows from top to bottom.

    Losses are hatched, so that print tells them apart. Needs matplotlib (the ``eval`` extra).

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("plot_pairwise: no rows")
    names = [name for name in ("method", "against", "judge", "temperature", "step", "axis") if name in rows[0]]
    told = [name for name in names if len({row[name] for row in rows}) > 1] or ["method", "against"]
    labels = [" · ".join(_worded(name, row[name]) for name in told) for row in rows]
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE | {"hatch.linewidth": 0.5}):
        figure = matplotlib.figure.Figure(figsize=(6.4, 1.0 + 0.3 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(rows) - 1, -1, -1)
        left = [0.0] * len(rows)
        for name, colour, hatch in _PARTS:
            widths = [_percent(row[name]) for row in rows]
            axes.barh(places, widths, left=left, color=colour, hatch=hatch, edgecolor="white", height=0.7, label=name)
            for place, width, start in zip(places, widths, left, strict=True):
                if width >= 8:
                    options = {"ha": "center", "va": "center", "fontsize": 7.5}
                    if hatch:  # a number on hatching needs a ground
                        options["bbox"] = {"facecolor": colour, "edgecolor": "none", "pad": 1.0}
                    axes.text(
                        start + width / 2, place, f"{width:.0f}", color="black" if name == "tie" else "white", **options
                    )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(places, labels)
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_axisbelow(True)
        axes.set_xlabel("% of what was judged")
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _worded(name: str, value: object) -> str:
    words = {"against": "against {}", "judge": "judge {}", "temperature": "T = {}", "step": "step {}"}
    return words.get(name, "{}").format(value)


def _percent(value: object) -> float:
    assert isinstance(value, Percent)
    assert isinstance(value.share, float)
    return 100 * value.share
