"""A table of Chain of Hindsight: every method trained with every seed, measured, kept, reported."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import _hindsight_report as report_files
from experiments._command import FirstBatch
from experiments._hindsight import BASE, METHODS, RLHF_ROW, RLHFRuns, Scale, Training, chains_of, train, with_trunk
from experiments._hindsight_result import COH
from experiments._hindsight_tasks import Measured, Task
from experiments._stages import JSON, Report, Stages, digest
from jaxalign import data, models
from jaxalign.errors import InputError

__all__ = ["Table", "first_batch", "run_table"]

Params = Any


@dataclass(frozen=True, kw_only=True)
class Table:
    """Which rows, with which numbers."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Rows that are trained; Base is always there."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds: order, templates, what is forgotten, samples."""
    rlhf_seeds: tuple[int, ...] = ()
    """Seeds of the RLHF row; none, no such row."""
    training: Training = field(default_factory=Training)
    """One run's numbers."""
    scale: Scale = field(default_factory=Scale)
    """How runs are computed."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise InputError(f"--methods: there is no method {name!r}; there are: {', '.join(METHODS)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("--seeds: name at least one, each once")
        if len(set(self.rlhf_seeds)) < len(self.rlhf_seeds):
            raise InputError("--rlhf-seeds: name each once")


def run_table(
    task: Task,
    table: Table,
    rlhf: RLHFRuns,
    stages: Stages,
    output: Path,
    *,
    experiment: str,
    name: str,
    title: str,
    console: Console,
) -> dict[str, Any]:
    """All runs, then the report; returns what it says, as numbers.

    Args:
      task: what is trained on and measured.
      table: the rows.
      rlhf: the RLHF row's runs, where it has seeds.
      stages: where finished runs are kept.
      output: where the report goes.
      experiment: the module's name.
      name: of the preset.
      title: of the report.
      console: where progress is printed.
    """
    known: dict[str, Any] = dict(task.inputs) | {"records": digest([dict(record) for record in task.records])}
    words = data.load_templates(task.templates).fingerprint()
    known["templates"] = words
    start = stages.stage("base", known, lambda report: task.measure(task.start, None, seed=0, report=report), *JSON)
    results: dict[str, list[Measured]] = {BASE: [start]}
    text: list[data.Example] = []
    for seed in table.seeds:
        for method_name in table.methods:
            method = METHODS[method_name]
            label = f"{_slug(method_name)}-seed-{seed}"
            inputs = known | table.scale.inputs | {
                "method": [method.form, method.objective], "training": asdict(table.training), "seed": seed,
            }  # fmt: skip
            directory = output / "runs" / stages.folder(label, inputs).name  # other inputs, other checkpoints

            def compute(
                report: Report, method: Any = method, seed: int = seed, directory: Path = directory
            ) -> tuple[Measured, Params, Any]:
                if not text:  # only when a run is missing: computed once for all of them
                    text.extend(with_trunk(task.config, task.start, task.text, table.training))
                params, prompts = train(
                    task.config, task.start, task.records, text, task.tokenizer, method, table.training,
                    templates=task.templates, kind=task.kind, seed=seed, report=report, scale=table.scale,
                    directory=table.scale.kept(directory),
                )  # fmt: skip
                first = seed == table.seeds[0]
                return task.measure(params, prompts, seed=seed, report=report, details=first), params, prompts

            kept = method_name == "CoH" and seed == table.seeds[0]  # its model is kept, to go on with

            def save(folder: Path, found: tuple[Measured, Params, Any], kept: bool = kept) -> None:
                JSON.save(folder, found[0])
                if kept:
                    models.save_pretrained(folder / "model", task.config, found[1], task.tokenizer)
                    found[2].save(folder / "model")

            row = stages.stage(label, inputs, compute, save, lambda folder: (JSON.load(folder), None, None))[0]
            results.setdefault(method_name, []).append(row)
            if kept:
                _link(output / "model", stages.folder(label, inputs) / "model")
    for seed in table.rlhf_seeds:
        label, inputs = f"rlhf-seed-{seed}", known | {"seed": seed, "rlhf": dict(rlhf.inputs)}
        directory = output / "runs" / stages.folder(label, inputs).name

        def compute_rlhf(report: Report, seed: int = seed, directory: Path = directory) -> Measured:
            policy = rlhf.policy(seed=seed, report=report, directory=directory)
            first = seed == table.rlhf_seeds[0]
            return task.measure(policy, None, seed=seed, report=report, details=first)

        results.setdefault(RLHF_ROW, []).append(stages.stage(label, inputs, compute_rlhf, *JSON))
    return report_files.write(
        output, task, table, results, experiment=experiment, name=name, title=title, seconds=stages.seconds,
        remarks=[f"{RLHF_ROW}: {rlhf.in_words}."] if table.rlhf_seeds else [], console=console,
    )  # fmt: skip


def first_batch(task: Task, table: Table, note: str = "") -> FirstBatch:
    """The examples of the first update of Chain of Hindsight (of the last method, where it is none), first seed."""
    name = COH if COH in table.methods else table.methods[-1]
    chains = chains_of(
        task.records, task.tokenizer, METHODS[name], table.training,
        templates=task.templates, kind=task.kind, seed=table.seeds[0],
    )  # fmt: skip
    rows = data.make_batches(
        chains, batch_size=table.training.outputs // METHODS[name].outputs, seed=table.seeds[0]
    ).plan.entries(0)
    examples = [chains.draw(*entry) for row in rows for entry in row]
    return FirstBatch(examples, task.tokenizer, f"{name}, seed {table.seeds[0]}" + (f"; {note}" if note else ""))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).replace("--", "-").strip("-")


def _link(link: Path, target: Path) -> None:
    """``link`` leads to ``target``, wherever the output folder is moved to."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(target.relative_to(link.parent), target_is_directory=True)
