"""Figures in one style: colour-blind safe colours, and markers and line styles that survive print."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError
from jaxalign.evaluation._frontier import FrontierPoint
from jaxalign.evaluation._frontier_area import pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_frontier", "save_figure"]

# Okabe and Ito, "Color Universal Design"; yellow left out, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_BEST_OF_N = "#000000"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 2, 2)))
STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "text.parse_math": False,  # a name with a $ is a name
    "svg.hashsalt": "jaxalign",  # the same figure is the same file
    "svg.fonttype": "none",
}


def plot_frontier(
    points: Sequence[FrontierPoint],
    *,
    reward_label: str = "Reward",
    title: str = "",
    error_bars: bool = True,
    pareto: bool = False,
) -> "Figure":
    """Reward against sequence-level KL: a colour per method, a marker and a line style per setting of it.

    Each curve joins the points of one (method, setting) in order of step; thin bars are 95 % intervals over prompts.
    Points whose KL is an analytic bound (Best-of-N) are black stars, the last labelled with its N: they lie at that KL
    or to the left of it. Needs matplotlib (the ``eval`` extra).
    """
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        colours: dict[str, str] = {}
        styles: dict[str, int] = {}
        for (method, setting), curve in _curves(points).items():
            if method not in colours:
                bound = curve[0].kl_is_bound
                used = sum(colour != _BEST_OF_N for colour in colours.values())
                colours[method] = _BEST_OF_N if bound else COLOURS[used % len(COLOURS)]
            style = styles[method] = styles.get(method, -1) + 1
            _draw(axes, curve, f"{method}, {setting}" if setting else method, colours[method], style, error_bars)
        if pareto:
            front = pareto_front(points)
            x, y = [point.kl.estimate for point in front], [point.reward.estimate for point in front]
            axes.step(x, y, where="post", color="0.8", linewidth=3.5, zorder=0, label="Pareto front")
        axes.set_xlabel("KL(policy ‖ reference), nats per sequence")
        axes.set_ylabel(reward_label)
        axes.set_title(title)
        axes.margins(x=0.03)
        low, high = axes.get_ylim()
        if low < 0 < high:
            axes.axhline(0.0, color="0.6", linewidth=0.6, zorder=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=3.2)
    return figure


def save_figure(figure: "Figure", stem: Path | str) -> tuple[Path, Path]:
    """Write ``STEM.png`` (200 dots per inch) and ``STEM.svg``; returns both paths."""
    png, svg = Path(f"{stem}.png"), Path(f"{stem}.svg")
    png.parent.mkdir(parents=True, exist_ok=True)
    with load_matplotlib().rc_context(STYLE):
        figure.savefig(png, dpi=200)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _curves(points: Sequence[FrontierPoint]) -> dict[tuple[str, str], list[FrontierPoint]]:
    """The points of each (method, setting), by step; methods and settings in order of first appearance."""
    curves: dict[tuple[str, str], list[FrontierPoint]] = {}
    for point in points:
        curves.setdefault((point.method, point.setting), []).append(point)
    return {name: sorted(curve, key=lambda point: point.step) for name, curve in curves.items()}


def _draw(axes: Any, curve: Sequence[FrontierPoint], label: str, colour: str, style: int, error_bars: bool) -> None:
    x, y = [point.kl.estimate for point in curve], [point.reward.estimate for point in curve]
    bound = curve[0].kl_is_bound
    if error_bars:
        down = [max(point.reward.estimate - point.reward.low, 0.0) for point in curve]
        up = [max(point.reward.high - point.reward.estimate, 0.0) for point in curve]
        left = [max(point.kl.estimate - point.kl.low, 0.0) for point in curve]
        right = [max(point.kl.high - point.kl.estimate, 0.0) for point in curve]
        sides = None if bound else (left, right)
        axes.errorbar(x, y, yerr=(down, up), xerr=sides, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.35)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=":" if bound else LINES[style % len(LINES)],
        linewidth=0.8 if bound else 1.3,
        marker="*" if bound else MARKERS[style % len(MARKERS)],
        markersize=9 if bound else 4,
        markerfacecolor=colour if bound or style % 2 == 0 else "white",
        label=f"{label} (KL bound)" if bound else label,
        zorder=3 if bound else 2,
    )
    if bound:
        last = curve[-1]  # the others' labels would lie on one another
        options = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
        axes.annotate(f"N={last.step}", (last.kl.estimate, last.reward.estimate), xytext=(0, 7), **options)


def load_matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.ticker
    except ModuleNotFoundError as error:
        raise InputError("matplotlib is not installed; run: pip install 'jaxalign[eval]'") from error
    return matplotlib
