"""Results as rows, and rows as Markdown or CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._frontier import FrontierPoint, RewardDifference

__all__ = ["csv_table", "difference_rows", "frontier_rows", "markdown_table"]

Row = Mapping[str, object]


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


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table; columns in order of first appearance, numbers to three decimals, intervals as ``x [a, b]``."""
    columns = _columns(rows)
    numeric = {name for name in columns if all(not isinstance(row.get(name, 0), str) for row in rows)}
    lines = [_line(columns), _line(["---:" if name in numeric else "---" for name in columns])]
    lines += [_line([_cell(row.get(name)) for name in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """The same rows as CSV at full precision; an interval takes three columns: itself, ``... low``, ``... high``."""
    flat: list[dict[str, object]] = []
    for row in rows:
        out: dict[str, object] = {}
        for name, value in row.items():
            if isinstance(value, Interval):
                out |= {name: value.estimate, f"{name} low": value.low, f"{name} high": value.high}
            else:
                out[name] = value
        flat.append(out)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(flat), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: object) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
