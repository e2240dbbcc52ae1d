"""What a table of Chain of Hindsight says of the paper: its numbers beside ours, its claims, its tables and figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import _results
from experiments._hindsight import BASE, RLHF_ROW
from experiments._hindsight_pairwise import judged_pairs, write_pairs, write_verdicts
from experiments._hindsight_tasks import Measured, Task
from experiments._results import Claim, Figure, Result, Table, Value, difference_over_seeds
from jaxalign import evaluation

__all__ = ["COH", "claims_of", "write_result"]

COH = "CoH"


def claims_of(task: Task, table: Any, results: Mapping[str, Sequence[Measured]]) -> dict[str, Claim]:
    """Row -> that CoH is above it; one training seed of a row, unlike one base, decides nothing."""
    scores = {method: [row["score"] for row in found] for method, found in results.items()}
    outputs = table.training.steps * table.training.outputs
    spent = f"{outputs} outputs in all, for CoH half of them the worse ones"
    found = {}
    for method in [method for method in scores if method != COH] if COH in scores else []:
        difference, by_seed = difference_over_seeds(scores[COH], scores[method])
        alone = [name for name in (COH, method) if name != BASE and len(scores[name]) == 1]
        found[method] = Claim(
            claim=f"CoH is above {method}", source=task.paper.source if method in task.paper.scores else "",
            statistic=f"{task.unit}, CoH minus {method}; over items and seeds", found=difference, by_seed=by_seed,
            why=spent if difference.estimate < 0 and method != RLHF_ROW else "",  # which has a budget of its own
            undecidable=f"one training seed of {' and of '.join(alone)}" if alone else "",
        )  # fmt: skip
    return found


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
        tables.append(Table(of=task.paper.pairwise, caption=caption, rows=pairwise))
    values = [
        Value(
            what=f"{task.unit}, {method}; over items", paper=task.paper.scores.get(method, ""), seeds=len(found),
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
