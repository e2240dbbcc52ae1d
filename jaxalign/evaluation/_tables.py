"""Results as rows, and rows as Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._frontier import FrontierPoint, RewardDifference
from jaxalign.evaluation._frontier_area import FrontierArea

__all__ = [
    "PValue",
    "Percent",
    "Rounded",
    "csv_table",
    "difference_rows",
    "frontier_area_rows",
    "frontier_rows",
    "latex_table",
    "markdown_table",
    "save_table",
    "spreadsheet_text",
]

# Also in the full width of East Asian keyboards, which spreadsheets read alike.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

Row = Mapping[str, object]
"""A table is a sequence of these: the one value that every format is made from."""


@dataclass(frozen=True)
class Percent:
    """A share, shown in percent."""

    share: float | Interval
    decimals: int = 1

    @property
    def value(self) -> float | Interval:
        """100 times the share."""
        if isinstance(self.share, Interval):
            return Interval(100 * self.share.estimate, 100 * self.share.low, 100 * self.share.high)
        return 100 * self.share

    def __str__(self) -> str:
        return _fixed(self.value, self.decimals)


@dataclass(frozen=True)
class Rounded:
    """A number, or an interval, shown with as many decimals as its unit asks for."""

    value: float | Interval
    decimals: int

    def __str__(self) -> str:
        return _fixed(self.value, self.decimals)


@dataclass(frozen=True)
class PValue:
    """A probability under the null hypothesis, shown to three decimals."""

    value: float

    def __str__(self) -> str:
        return "< 0.001" if self.value < 0.001 else f"{self.value:.3f}"


def frontier_rows(points: Sequence[FrontierPoint]) -> list[dict[str, object]]:
    """One row a point: method, setting, step, KL and reward with intervals, then the extras."""
    return [
        {
            "method": point.method,
            "setting": point.setting,
            "step": point.step,
            "KL (nats/sequence)": point.kl.estimate if point.kl_is_bound else point.kl,
            "KL is": "upper bound" if point.kl_is_bound else "measured",
            "reward": point.reward,
            **point.extras,
        }
        for point in points
    ]


def difference_rows(differences: Sequence[RewardDifference]) -> list[dict[str, object]]:
    """One row a comparison at equal KL; a method that did not get that far is shown by its best reward before it."""

    def shown(reward: float, reached: bool) -> str:
        return f"{reward:.3f}" if reached else f"{reward:.3f} (not reached)"

    return [
        {
            "KL (nats/sequence)": row.kl,
            "method": row.method,
            "baseline": row.baseline,
            "method reward": shown(row.method_reward, row.method_reached),
            "baseline reward": shown(row.baseline_reward, row.baseline_reached),
            "difference": row.difference,
        }
        for row in differences
    ]


def frontier_area_rows(areas: Sequence[FrontierArea]) -> list[dict[str, object]]:
    """One row a method: its mean best reward over the range of KL budgets, and whether it got to the range's end."""
    return [
        {
            "method": row.method,
            "KL budgets (nats/sequence)": f"{row.kl_range[0]:g} to {row.kl_range[1]:g}",
            "mean best reward": row.area,
            "runs": row.runs,
            "reached the end": "yes" if row.reached else "no",
        }
        for row in areas
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table; columns in order of first appearance, numbers to three decimals, intervals as ``x [a, b]``."""
    columns, numeric = table_columns(rows)
    lines = [_line(map(_markdown_cell, columns)), _line(["---:" if name in numeric else "---" for name in columns])]
    lines += [_line([_markdown_cell(cell_text(row.get(name))) for name in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def latex_table(rows: Sequence[Row], *, caption: str = "", label: str = "") -> str:
    """The same rows as a LaTeX table for the package ``booktabs``; whatever LaTeX would read as a command is escaped.

    With a caption or a label it is a floating ``table``, else the ``tabular`` alone.
    """
    columns, numeric = table_columns(rows)
    lines = [r"\begin{tabular}{" + "".join("r" if name in numeric else "l" for name in columns) + "}", r"\toprule"]
    lines += [_latex_line(columns), r"\midrule"]
    lines += [_latex_line([cell_text(row.get(name)) for name in columns]) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if caption or label:
        named = [rf"\caption{{{_latex(caption)}}}"] * bool(caption) + [rf"\label{{{label}}}"] * bool(label)
        lines = [r"\begin{table}", r"\centering", *lines, *named, r"\end{table}"]
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """The same rows as CSV at full precision; an interval takes three columns: itself, ``... low``, ``... high``.

    Text that a spreadsheet would take for a formula stands behind an apostrophe.
    """
    flat: list[dict[str, object]] = []
    for row in rows:
        out: dict[str, object] = {}
        for name, value in row.items():
            value = value.value if isinstance(value, Percent | PValue | Rounded) else value
            if isinstance(value, Interval):
                out |= {name: value.estimate, f"{name} low": value.low, f"{name} high": value.high}
            else:
                out[name] = value
        flat.append(out)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(flat), restval="", lineterminator="\n")
    writer.writerow({name: spreadsheet_text(name) for name in writer.fieldnames})
    for row in flat:
        writer.writerow({name: spreadsheet_text(cell) if isinstance(cell, str) else cell for name, cell in row.items()})
    return buffer.getvalue()


def spreadsheet_text(cell: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula, and runs it; behind an apostrophe it is text."""
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA) or cell.startswith(("\t", "\r", "\n")) else cell


def save_table(rows: Sequence[Row], stem: Path | str, *, caption: str = "") -> tuple[Path, Path, Path]:
    """Write ``STEM.md``, ``STEM.tex`` and ``STEM.csv`` of the same rows; returns the paths."""
    texts = {"md": markdown_table(rows), "tex": latex_table(rows, caption=caption), "csv": csv_table(rows)}
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    paths = {suffix: Path(f"{stem}.{suffix}") for suffix in texts}
    for suffix, path in paths.items():
        path.write_text(texts[suffix], encoding="utf-8")
    return paths["md"], paths["tex"], paths["csv"]


def table_columns(rows: Sequence[Row]) -> tuple[list[str], set[str]]:
    """Columns in order of first appearance, and those of them that hold no text."""
    columns = _columns(rows)
    return columns, {name for name in columns if all(not isinstance(row.get(name, 0), str) for row in rows)}


def cell_text(value: object) -> str:
    """What a cell shows: numbers to three decimals, nothing for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _fixed(value: float | Interval, digits: int) -> str:
    if isinstance(value, Interval):
        return f"{value.estimate:z.{digits}f} [{value.low:z.{digits}f}, {value.high:z.{digits}f}]"
    return f"{value:z.{digits}f}"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _markdown_cell(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")  # Markdown would read HTML
    return text.replace("|", "\\|").replace("\n", " ")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_LATEX = {
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\n": " ",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_line(cells: Iterable[str]) -> str:
    line = " & ".join(map(_latex, cells)) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line  # the line break before would take it for its argument
