"""One page of everything the experiments found, and the tables of ``experiments/README.md``.

    python -m experiments.report RUNS... [--output runs/experiments/report.html] [--readme experiments/README.md]
        RUNS are output folders of experiments, or folders of them. Seconds.

The page holds every figure and table, the paper's numbers beside ours, and every claim with its statistic, interval
and verdict. With ``--readme`` what stands between the two marks in that file is written anew from the same results.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments._results import Figure, Result, Table, load
from jaxalign import evaluation
from jaxalign.cli import end
from jaxalign.errors import InputError
from jaxalign.evaluation import ReportFigure, ReportPart, ReportTable, ReportText

__all__ = ["ReportConfig", "claim_rows", "main", "page", "parse", "readme_tables", "value_rows"]

BEGIN = "<!-- results: written by python -m experiments.report -->"
END = "<!-- end of results -->"


@dataclass(frozen=True)
class ReportConfig:
    """Which results, and where to."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Output folders of experiments, or folders of them."""
    output: Path = Path("runs/experiments/report.html")
    """The page."""
    readme: Path | None = None
    """A Markdown file whose tables are written anew."""


def find(folders: Sequence[Path]) -> list[tuple[Path, Result]]:
    """Results in these folders or one below, by the name of the experiment.

    Raises:
      InputError: a folder that has none.
    """
    found: list[tuple[Path, Result]] = []
    for folder in folders:
        places = [folder, *sorted(child for child in folder.glob("*") if child.is_dir())] if folder.is_dir() else []
        here = [(place, load(place)) for place in places if (place / "result.json").is_file()]
        if not here:
            raise InputError(f"RUNS: {folder} holds no result.json; an experiment writes it at its end")
        found += here
    return sorted(found, key=lambda pair: (pair[1].experiment, pair[1].preset))


def claim_rows(results: Sequence[Result]) -> list[dict[str, object]]:
    """The table of claims."""
    return [
        {
            "experiment": f"{result.experiment} ({result.preset})", "claim": claim.claim, "source": claim.source,
            "statistic": claim.statistic, "found": claim.found, "seeds": max(len(claim.by_seed), 1),
            "verdict": claim.verdict, "why": claim.reason,
        }
        for result in results
        for claim in result.claims
    ]  # fmt: skip


def value_rows(results: Sequence[Result]) -> list[dict[str, object]]:
    """The paper's numbers beside ours."""
    return [
        {
            "experiment": result.experiment, "preset": result.preset, "what": value.what, "paper": value.paper or "-",
            "ours": value.ours, "seeds": value.seeds,
        }
        for result in results
        for value in result.values
    ]  # fmt: skip


def page(found: Sequence[tuple[Path, Result]]) -> str:
    """The page as HTML, every figure in it."""
    results = [result for _, result in found]
    parts: list[ReportPart] = [ReportText("Claims", _VERDICTS), ReportTable("Claims", claim_rows(results))]
    parts += [ReportTable("The papers' numbers beside ours", value_rows(results))]
    for folder, result in found:
        judges = "; ".join(f"{axis}: {judge}" for axis, judge in result.judges.items())
        minutes = f"{result.seconds / 60:.0f} minutes of computing, training seeds: {result.seeds}."
        parts.append(ReportText(f"{result.title} ({result.experiment}, preset {result.preset})", "\n\n".join(
            filter(None, [result.setting, judges and f"Judged by {judges}.", minutes, *result.remarks])
        )))  # fmt: skip
        for figure in result.figures:
            parts.append(ReportFigure(_of(figure), folder / figure.file))
        for table in result.tables:
            parts.append(ReportTable(_of(table), table.rows))
    return evaluation.html_report("The papers' experiments", parts)


_VERDICTS = (
    "A statistic is positive if the claim is true. It holds where its 95 % interval and the values in all training "
    "seeds lie above 0, is reversed where all lie below, and is undecided else, as it is where a trained method has "
    "one seed, or where it is of people and none was asked. So many intervals have no joint guarantee."
)


def _of(shown: Figure | Table) -> str:
    return f"{shown.caption} ({shown.of})" if shown.of else shown.caption


def readme_tables(results: Sequence[Result]) -> str:
    """What stands between the marks."""
    settings = [
        {
            "experiment": f"`{result.experiment}`", "preset": f"`{result.preset}`", "what": result.setting,
            "judged by": "; ".join(f"{axis}: {judge}" for axis, judge in result.judges.items()),
            "seeds": result.seeds, "minutes": f"{result.seconds / 60:.0f}",
        }
        for result in results
    ]  # fmt: skip
    parts = [
        "### Claims", _VERDICTS, evaluation.markdown_table(claim_rows(results)),
        "### The papers' numbers beside ours", evaluation.markdown_table(value_rows(results)),
        "### What ran", evaluation.markdown_table(settings),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def rewrite(path: Path, tables: str) -> None:
    """Put ``tables`` between the marks of a file.

    Raises:
      InputError: a file without them.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise InputError(f"--readme: {path} needs a line {BEGIN!r} and, below it, {END!r}")
    path.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{after}", encoding="utf-8")


def parse(arguments: Sequence[str] | None = None) -> ReportConfig:
    """What ``arguments`` (None: the command line's) say."""
    return tyro.cli(ReportConfig, args=arguments, prog="python -m experiments.report", description=__doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    config = parse(arguments)
    try:
        found = find(config.runs)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(page(found), encoding="utf-8")
        if config.readme is not None:
            rewrite(config.readme, readme_tables([result for _, result in found]))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(end("report", error))
    print(config.output)


if __name__ == "__main__":
    main()
