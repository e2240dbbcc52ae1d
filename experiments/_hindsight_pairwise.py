"""Chain of Hindsight against every other row, output by output: win, tie, lose by axis (the paper's tables 1 and 2)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments._hindsight_tasks import AXIS, Measured, Task
from jaxalign.evaluation import JudgedPair, Outcome

__all__ = ["judged_pairs", "write_pairs", "write_verdicts"]


def judged_pairs(task: Task, method: str, results: Mapping[str, Sequence[Measured]]) -> list[JudgedPair]:
    """``method``'s outputs against those of every other, seed by seed, on every axis; a row of one seed stands for all.

    The better score wins, scores within the axis's margin tie.
    """
    found = []
    for other, rows in results.items():
        if other == method or not task.axes:
            continue
        for seed, own in enumerate(results.get(method, ())):
            theirs = rows[min(seed, len(rows) - 1)]
            for axis in task.axes:
                scores = zip(own[AXIS + axis.name], theirs[AXIS + axis.name], strict=True)
                for item, (ours, against) in enumerate(scores):
                    found.append(
                        JudgedPair(
                            prompt=task.items[item], ours=own["output"][item], theirs=theirs["output"][item],
                            outcome=_outcome(ours - against, axis.margin), axis=axis.name, method=method, against=other,
                        )
                    )  # fmt: skip
    return found


def write_verdicts(path: Path, pairs: Sequence[JudgedPair]) -> None:
    """As ``jaxalign evaluate --verdicts`` reads them."""
    rows = ({name: value for name, value in asdict(pair).items() if value not in (None, "")} for pair in pairs)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_pairs(path: Path, task: Task, results: Mapping[str, Sequence[Measured]]) -> None:
    """Every row's output of the first seed, an item a line: what ``jaxalign judge run`` and ``judge serve`` read."""
    with path.open("w", encoding="utf-8") as file:
        for item, prompt in enumerate(task.items):
            outputs = {method: rows[0]["output"][item] for method, rows in results.items()}
            file.write(json.dumps({"prompt": prompt, "outputs": outputs}, ensure_ascii=False) + "\n")


def _outcome(difference: float, margin: float) -> Outcome:
    if abs(difference) <= margin:
        return "tie"
    return "win" if difference > 0 else "lose"
