"""One page of everything the experiments found, and the tables of ``experiments/README.md``.

    python -m experiments.report RUNS... [--output runs/experiments/report.html] [--keep experiments/results]
        [--readme experiments/README.md]
        RUNS are output folders of experiments, folders of them, or folders of kept results. Seconds.

The page holds every figure and table, the paper's numbers beside ours, and every claim with its statistic, interval
and verdict. With ``--readme`` what stands between the two marks in that file is written anew from the same results,
with ``--keep`` what it shows of them is written to that folder, a small file each, and its figures to ``docs/images``:
``python -m experiments.report experiments/results --readme experiments/README.md`` then needs no run.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from experiments import _report_tables as tables
from experiments._results import Result, keep, load
from jaxalign import evaluation
from jaxalign.cli import end
from jaxalign.errors import InputError
from jaxalign.evaluation import ReportFigure, ReportPart, ReportTable, ReportText

__all__ = ["ReportConfig", "find", "main", "page", "parse"]

BEGIN = "<!-- results: written by python -m experiments.report -->"
END = "<!-- end of results -->"


@dataclass(frozen=True)
class ReportConfig:
    """Which results, and where to."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Output folders of experiments, folders of them, or folders of kept results."""
    output: Path = Path("runs/experiments/report.html")
    """The page."""
    readme: Path | None = None
    """A Markdown file whose tables are written anew; with ``keep``, of all that is kept there."""
    keep: Path | None = None
    """A folder for what the Markdown file shows of each result; of an experiment one preset is kept."""
    images: Path = Path("docs/images")
    """Where the figures of kept results go."""


def find(folders: Sequence[Path]) -> list[tuple[Path, Result]]:
    """Results in these folders or one below, and where their figures are, by the name of the experiment.

    Raises:
      InputError: a folder that has none.
    """
    found: list[tuple[Path, Result]] = []
    for folder in folders:
        runs = [place for place in (folder, *folder.glob("*")) if (place / "result.json").is_file()]
        here = [(place, load(place)) for place in runs]
        if not here:
            here = [(folder, load(file)) for file in folder.glob("*.json")]
        if not here:
            raise InputError(f"RUNS: {folder} holds no result.json; an experiment writes it at its end")
        found += here
    return sorted(found, key=lambda pair: (pair[1].experiment, pair[1].preset))


def page(found: Sequence[tuple[Path, Result]]) -> str:
    """The page as HTML, every figure in it."""
    overview = tables.overview_rows([result for _, result in found])
    parts: list[ReportPart] = [ReportText("Claims", tables.VERDICTS), ReportTable("How they came out", overview)]
    for folder, result in found:
        name = f"{result.title} ({result.experiment}, preset {result.preset})"
        parts.append(ReportText(name, "\n\n".join(tables.about(result))))
        if result.claims:
            notes = [f"{number}. {note}" for number, note in enumerate(tables.claim_notes(result), start=1)]
            parts.append(ReportTable("Claims", tables.claim_rows(result)))
            parts.append(ReportText("What was computed, and why", "\n\n".join(notes)))
        if result.values:
            parts.append(ReportTable(tables.value_title(result), tables.value_rows(result)))
        for figure in result.figures:
            parts.append(ReportFigure(tables.titled(figure), folder / figure.file))
        for table in result.tables:
            parts.append(ReportTable(tables.titled(table), table.rows))
    return evaluation.html_report("The papers' experiments", parts)


def rewrite(path: Path, marked: str) -> None:
    """Put ``marked`` between the marks of a file.

    Raises:
      InputError: a file without them.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise InputError(f"--readme: {path} needs a line {BEGIN!r} and, below it, {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{marked}\n{END}{after}", encoding="utf-8")


def parse(arguments: Sequence[str] | None = None) -> ReportConfig:
    """What ``arguments`` (None: the command line's) say."""
    return tyro.cli(ReportConfig, args=arguments, prog="python -m experiments.report", description=__doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    config = parse(arguments)
    try:
        found = find(config.runs)
        twice = [one.experiment for (_, one), (_, other) in pairwise(found) if one.experiment == other.experiment]
        if twice and config.keep is not None:
            raise InputError(f"--keep: RUNS hold {twice[0]} twice, and one preset of an experiment is kept")
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(page(found), encoding="utf-8")
        if config.keep is not None:
            for folder, result in found:
                keep(folder, result, config.keep, config.images)
            found = find([config.keep])  # those of earlier runs, too
        if config.readme is not None:
            images = Path(os.path.relpath(config.images, config.readme.parent)).as_posix()
            rewrite(config.readme, tables.readme_tables([result for _, result in found], images))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(end("report", error))
    print(config.output)


if __name__ == "__main__":
    main()
