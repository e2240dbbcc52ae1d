"""What a table of Chain of Hindsight says of the paper: its numbers beside ours, its claims, its tables and figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _results
from experiments._hindsight import BASE, RLHF_ROW
from experiments._hindsight_pairwise import judged_pairs, write_pairs, write_verdicts
from experiments._hindsight_tasks import Measured, Task
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds, verdict
from jaxalign import evaluation

__all__ = ["BAD", "COH", "STEERED", "claims_of", "steering_claims", "write_result"]

COH = "CoH"
STEERED = (COH, "C-SFT")
"""Of which the result claims that the words steer."""
BAD = "score, bad words"
"""What ``Measured`` calls the score after the words of a bad output."""


def claims_of(task: Task, table: Any, results: Mapping[str, Sequence[Measured]]) -> dict[str, Claim]:
    """Row -> that CoH is above it; one training seed of a row, unlike one base, decides nothing."""
    scores = {method: [row["score"] for row in found] for method, found in results.items()}
    found = {}
    for method in [method for method in scores if method != COH] if COH in scores else []:
        difference, by_seed = difference_over_seeds(scores[COH], scores[method])
        alone = [name for name in (COH, method) if name != BASE and len(scores[name]) == 1]
        shown = verdict(difference, by_seed) == "holds" and not alone
        found[method] = Claim(
            claim=f"CoH is above {method}", source=task.paper.source if method in task.paper.scores else "",
            statistic=f"{task.unit}, CoH minus {method}; over items and seeds", found=difference, by_seed=by_seed,
            decimals=task.decimals, why="" if shown else _spent(table, results, method, against=True),
            undecidable=f"one training seed of {' and of '.join(alone)}" if alone else "",
        )  # fmt: skip
    return found


def steering_claims(task: Task, table: Any, results: Mapping[str, Sequence[Measured]]) -> dict[str, Claim]:
    """Row that is asked by words -> that the words steer it; both sides are of one model, so that seeds are paired."""
    found = {}
    for method, rows in results.items():
        if BAD not in rows[0]:
            continue
        good, bad = (np.array([row[name] for row in rows], np.float64) for name in ("score", BAD))
        difference, by_seed = difference_over_seeds(good - bad, np.zeros((1, good.shape[1])))
        means = f"after good words {good.mean():.{task.decimals}f}, after bad ones {bad.mean():.{task.decimals}f}"
        holds = verdict(difference, by_seed) == "holds"
        found[method] = Claim(
            claim=f"The words steer {method}", source="",
            statistic=f"{task.unit}, {method} after the words of a good output minus after those of a bad one; over "
            "items and seeds",
            found=difference, by_seed=by_seed, decimals=task.decimals,
            why=means if holds else f"{means}; {_spent(table, results, method)}",
        )  # fmt: skip
    return found


def _spent(table: Any, results: Mapping[str, Sequence[Measured]], method: str, *, against: bool = False) -> str:
    """What there is to see a difference with; ``against``: CoH is compared with the method."""
    outputs, items = table.training.steps * table.training.outputs, len(results[method][0]["score"])
    own = "; RLHF's budget is its own" if method == RLHF_ROW else ""
    half = f", for {COH} half of them the worse ones" if against and not method.startswith(COH) else ""
    return f"{items} items; {outputs} outputs to learn from{half}{own}"


def write_result(
    output: Path,
    task: Task,
    table: Any,
    results: Mapping[str, Sequence[Measured]],
    *,
    experiment: str,
    name: str,
    title: str,
    seconds: float,
    rows: Sequence[Mapping[str, object]],
    claims: Sequence[Claim],
    remarks: Sequence[str],
    figure: str | None,
) -> list[dict[str, object]]:
    """``result.json``; where there are axes ``verdicts.jsonl``, ``pairs.jsonl`` and ``pairwise.{md,tex,csv}``, the rows
    of which are returned."""
    pairs = judged_pairs(task, COH, results)
    tables = [Table(of="", caption=f"Every row: {task.score}", rows=rows)]
    pairwise: list[dict[str, object]] = []
    if pairs:
        write_verdicts(output / "verdicts.jsonl", pairs)
        write_pairs(output / "pairs.jsonl", task, results)
        pairwise = evaluation.pairwise_rows(pairs)
        caption = (
            "Chain of Hindsight against the others, % of the held-out items of every seed: win, tie, lose, win - lose"
        )
        evaluation.save_table(pairwise, output / "pairwise", caption=f"{caption}.")
        tables.append(Table(of=task.paper.pairwise, caption=caption, rows=pairwise, shown=True))
    values = [
        Value(
            what=f"{task.unit}, {method}; over items", paper=task.paper.scores.get(method, ""), seeds=len(found),
            decimals=task.decimals,
            ours=evaluation.bootstrap_interval(
                [value for row in found for value in row["score"]],
                groups=[item for row in found for item in range(len(row["score"]))],
            ),
        )
        for method, found in results.items()
    ]  # fmt: skip
    judges = {axis.name: axis.judge for axis in task.axes}
    _results.save(
        output,
        Result(
            experiment=experiment, preset=name, title=title,
            setting=f"{task.setting}; {len(task.records)} records with feedback, {table.training.steps} updates of "
            f"{table.training.outputs} outputs; {len(results[BASE][0]['score'])} held-out items.",
            judges={"score": task.score, **judges}, seeds=len(table.seeds), seconds=seconds, values=values,
            claims=claims, tables=tables, remarks=remarks,
            figures=[Figure(of=task.paper.source, caption=f"{title}: {task.score}", file=figure)] if figure else [],
        ),
    )  # fmt: skip
    return pairwise
