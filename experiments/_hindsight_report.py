"""The report of a table of Chain of Hindsight: intervals, differences, and whether the paper's order holds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments._hindsight import BASE
from experiments._hindsight_result import BAD, COH, STEERED, claims_of, steering_claims, write_result
from experiments._hindsight_tasks import Measured, Task, numbers
from experiments._results import Claim
from jaxalign import evaluation
from jaxalign.evaluation import Interval

__all__ = ["write"]

NO_MASK = "CoH, no forgetful mask"
# The paper has CoH above every other row, and its own ablations below it.
PAPER = "CoH above every baseline and every ablation (Liu et al. 2023, tables 1 and 2, figure 5)"


def write(
    output: Path,
    task: Task,
    table: Any,
    results: Mapping[str, Sequence[Measured]],
    *,
    experiment: str,
    name: str,
    title: str,
    seconds: float,
    remarks: Sequence[str] = (),
    console: Console,
) -> dict[str, Any]:
    """Write ``report.md``, ``table.csv``, ``results.json``, ``result.json`` and, with matplotlib, the figure; returns
    the numbers. ``remarks`` are what a reader has to know besides."""
    output.mkdir(parents=True, exist_ok=True)
    rows = [_row(method, found, task.decimals) for method, found in results.items()]
    claims = claims_of(task, table, results)
    differences = _differences(results, claims)
    steering = steering_claims(task, table, results)
    control = _control(results, steering)
    copied = _copied(results)
    lines = [
        f"# {title}", "",
        f"Preset `{name}`: {len(table.seeds)} training seed{'s' * (len(table.seeds) > 1)}, {table.training.steps} "
        f"updates of {table.training.outputs} outputs each, {len(task.records)} records with feedback, "
        f"{len(results[BASE][0]['score'])} held-out items.", "",
        *(part for remark in remarks for part in (remark, "")),
        f"Score: {task.score}. Intervals are 95 % bootstrap intervals over held-out items, a model's seeds averaged; "
        "\"seeds\" are the lowest and highest mean of a seed; nats a token are the first seed's. SFT-U's alpha is .5, "
        "not searched for.", "",
        evaluation.markdown_table(rows),
    ]  # fmt: skip
    if differences:
        lines += [
            f"## Does the paper's order hold? ({PAPER})", "",
            evaluation.markdown_table([_shown(row, task.decimals) for row in differences]),
            _reading(differences), "",
        ]  # fmt: skip
    if control:
        lines += [
            "## Do the words steer?", "",
            "The same model after the words of a good output and after those of a bad one, paired by item: that the "
            "words steer is judged over items and training seeds, as the order is. Of outputs that were to be better, "
            "intervals are over items alone.", "",
            evaluation.markdown_table([_shown(row, task.decimals) for row in control]),
        ]  # fmt: skip
    if copied:
        lines += [
            "## Does the second output copy the first?", "",
            "Share of the second output's word 3-grams that the first, given back as the worse one, has too.", "",
            evaluation.markdown_table([_shown(row, 3) for row in copied]),
        ]  # fmt: skip
    figure = _draw(output, task, results)
    pairwise = write_result(
        output, task, table, results, experiment=experiment, name=name, title=title, seconds=seconds, rows=rows,
        claims=[*claims.values(), *(steering[method] for method in STEERED if method in steering)], remarks=remarks,
        figure=figure,
    )  # fmt: skip
    if pairwise:
        lines += [
            f"## Output by output ({task.paper.pairwise})", "",
            *(f"- {axis.name}: {axis.judge}; scores within {axis.margin:g} tie" for axis in task.axes), "",
            evaluation.markdown_table(pairwise),
        ]  # fmt: skip
    text = "\n".join(lines).rstrip() + "\n"
    (output / "report.md").write_text(text, encoding="utf-8")
    (output / "table.csv").write_text(evaluation.csv_table(_full(results)), encoding="utf-8")
    summary = {
        "rows": {method: {key: float(np.mean(seeds_averaged(found, key))) for key in numbers(found[0])}
                 for method, found in results.items()},
        "differences": [_plain(row) for row in differences],
        "control": [_plain(row) for row in control],
        "copied": [_plain(row) for row in copied],
    }  # fmt: skip
    (output / "results.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {output / 'report.md'}", highlight=False, markup=False)
    return summary


def seeds_averaged(rows: Sequence[Measured], name: str) -> np.ndarray:
    """A value of every item, averaged over the seeds that have it."""
    return np.mean([row[name] for row in rows if name in row], axis=0)


def _interval(rows: Sequence[Measured], name: str) -> Interval:
    return evaluation.bootstrap_interval(seeds_averaged(rows, name))


def _row(method: str, rows: Sequence[Measured], decimals: int) -> dict[str, object]:
    means = [float(np.mean(row["score"])) for row in rows]
    found: dict[str, object] = {"method": method, "score": _text(_interval(rows, "score"), decimals)}
    found["seeds"] = f"{min(means):.{decimals}f} to {max(means):.{decimals}f}" if len(means) > 1 else ""
    for name in numbers(rows[0]):
        if name != "score" and not name.startswith("copied"):
            digits = decimals if name.startswith("score") else 3
            found[name] = f"{np.mean(seeds_averaged(rows, name)):.{digits}f}"
    return found


def _differences(results: Mapping[str, Sequence[Measured]], claims: Mapping[str, Claim]) -> list[dict[str, Any]]:
    """CoH against every other row; whether the order holds is what the claims say."""
    means = {method: [float(np.mean(row["score"])) for row in rows] for method, rows in results.items()}
    found = []
    for method, claim in claims.items():
        above, below = min(means[COH]) > max(means[method]), max(means[COH]) < min(means[method])
        seeds = "all above" if above else "all below" if below else "mixed"
        found.append(
            {
                "CoH minus": method,
                "difference": claim.found,
                "CoH's seeds": seeds,
                "the order": claim.verdict,
            }
        )
    return found


def _reading(differences: Sequence[Mapping[str, Any]]) -> str:
    """What the table says, in a sentence."""

    def names(verdict: str) -> str:
        return ", ".join(str(row["CoH minus"]) for row in differences if row["the order"] == verdict)

    parts = [
        f"{text}: {found}"
        for text, found in (
            ("CoH is above", names("holds")), ("CoH is below", names("reversed")),
            ("no difference is shown to", names("undecided")),
        )
        if found
    ]  # fmt: skip
    return (
        "Read off the table: "
        + "; ".join(parts)
        + ". Intervals are over items and training seeds; an order counts as shown only if, besides, the difference is "
        "on one side in every seed, of which every trained row must have two. So many comparisons have no joint "
        "guarantee."
    )


def _control(results: Mapping[str, Sequence[Measured]], steering: Mapping[str, Claim]) -> list[dict[str, Any]]:
    found = []
    for method, claim in steering.items():
        rows = results[method]
        entry: dict[str, Any] = {"method": method, "good minus bad": claim.found, "the words steer": claim.verdict}
        if "score, bettered" in rows[0]:
            good, bad, better = (seeds_averaged(rows, name) for name in ("score", BAD, "score, bettered"))
            entry["bettered minus bad"] = evaluation.paired_bootstrap_difference(better, bad)
            entry["bettered minus good"] = evaluation.paired_bootstrap_difference(better, good)
        found.append(entry)
    return found


def _copied(results: Mapping[str, Sequence[Measured]]) -> list[dict[str, Any]]:
    found = []
    for method, rows in results.items():
        if "copied" not in rows[0]:
            continue
        entry: dict[str, Any] = {"method": method, "copied": _interval(rows, "copied")}
        if "copied, unseen" in rows[0]:
            entry["of an output not seen"] = _interval(rows, "copied, unseen")
        if method == COH and NO_MASK in results:
            other = seeds_averaged(results[NO_MASK], "copied")
            entry["minus that without mask"] = evaluation.paired_bootstrap_difference(
                seeds_averaged(rows, "copied"), other
            )
        found.append(entry)
    return found


def _text(interval: Interval, decimals: int) -> str:
    return f"{interval.estimate:.{decimals}f} [{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"


def _shown(row: Mapping[str, Any], decimals: int) -> dict[str, object]:
    return {name: _text(value, decimals) if isinstance(value, Interval) else value for name, value in row.items()}


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: [value.estimate, value.low, value.high] if isinstance(value, Interval) else value
        for name, value in row.items()
    }


def _full(results: Mapping[str, Sequence[Measured]]) -> list[dict[str, object]]:
    return [
        {"method": method} | {name: _interval(rows, name) for name in numbers(rows[0])}
        for method, rows in results.items()
    ]


def _draw(output: Path, task: Task, results: Mapping[str, Sequence[Measured]]) -> str | None:
    """The figure's file."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        return None
    bars = {method: _interval(rows, "score") for method, rows in results.items()}
    seeds = {method: [float(np.mean(row["score"])) for row in rows] for method, rows in results.items()}
    evaluation.save_figure(evaluation.plot_intervals(bars, points=seeds, label=task.score), output / "table")
    return "table.svg"
