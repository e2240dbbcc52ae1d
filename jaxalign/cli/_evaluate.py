"""``jaxalign evaluate``: what a run and its completions are worth, as tables, figures and one page."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.cli import _evaluate_measures as measures
from jaxalign.errors import InputError, nearest_path

__all__ = ["EvaluateConfig", "run"]

_CURVES = 18  # panels of the page; a PPO run logs twice as many
_FIRST = ("loss", "eval/", "rewards/", "objective/", "nll/")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure a run and its completions; write tables, figures and one page."""

    output_dir: Path
    """Where ``report.html``, the tables (.md, .tex, .csv) and the figures (.png, .svg) go."""
    run: Path | None = None
    """Folder of a run: its settings and training curves; and where it holds the ``results.json`` of an experiment, that
    frontier."""
    completions: tuple[str, ...] = ()
    """Files of completions as ``jaxalign sample`` writes them, NAME=FILE or FILE: to be measured and, where prompts are
    the same, read side by side."""
    references: Path | None = None
    """Records with ``prompt`` and ``completion`` (or ``chosen``): for ROUGE, and shown beside the samples."""
    reward: str | None = None
    """What scores a completion: "package.module:function" or "path/to/file.py:function", or the folder or hub id of a
    reward model or classifier (one of several labels: FOLDER#LABEL)."""
    model: str | None = None
    """Folder in Hugging Face format, or a hub id. Of this language model: the completions' perplexity under it, and
    where records hold the ``log_prob`` they were sampled with, their KL to it: right without top-k, top-p, min-p and
    stop strings."""
    verdicts: tuple[str, ...] = ()
    """Files of judged pairs, NAME=FILE or FILE, a line each: ``prompt``, ``ours``, ``theirs``, ``outcome`` ("win",
    "tie", "lose", "invalid"), and where known ``axis``, ``method`` and ``against`` (or ``names``, these two), ``judge``
    (NAME, where it is given, comes before it), ``rater`` (a person), ``temperature``, ``step``."""
    ties: Literal["half", "exclude", "separate"] = "half"
    """In win rates a tie is half a win, is left out, or is neither won nor lost."""
    samples_shown: int = 8
    """Prompts whose completions the page shows."""
    title: str = "Evaluation"
    """Of the page."""
    batch_size: int = 16
    """Completions that ``model`` scores at a time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of ``model``'s activations."""
    seed: int = 0
    """Of the intervals' resampling."""

    def __post_init__(self) -> None:
        if self.run is None and not self.completions and not self.verdicts:
            raise InputError("--run, --completions or --verdicts: give at least one")
        for name in ("references", "reward", "model"):
            if getattr(self, name) is not None and not self.completions:
                raise InputError(f"--{name}: there is nothing to measure without --completions")
        if self.samples_shown < 0:
            raise InputError(f"--samples-shown: must be at least 0, is {self.samples_shown}")
        if self.batch_size < 1:
            raise InputError(f"--batch-size: must be at least 1, is {self.batch_size}")


def run(config: EvaluateConfig) -> None:
    """Read, measure, write, say what was written. Raises ``InputError`` for what is wrong with the input."""
    if config.output_dir.exists() and not config.output_dir.is_dir():
        raise InputError(f"--output-dir: {config.output_dir} is a file, not a folder")
    # Everything is read before anything is computed: what is wrong is said in a second.
    files = [measures.read_completions(spec) for spec in config.completions]
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise InputError(f"--completions: two files are called {max(names, key=names.count)!r}: write NAME=FILE")
    references = None if config.references is None else measures.read_references(config.references, files)
    pairs = [pair for spec in config.verdicts for pair in _read_verdicts(spec)]
    if config.run is None and not files and not pairs:
        raise InputError("--verdicts: there is no verdict in these files")
    page = _Page(config.output_dir)
    if config.run is not None:
        _add_run(page, config.run, config.seed)
    if files:
        measured = measures.measure(
            files,
            references=references,
            reward=config.reward,
            model=config.model,
            batch_size=config.batch_size,
            dtype=config.dtype,
            seed=config.seed,
        )
        _add_completions(page, measured, config)
    if pairs:
        _add_verdicts(page, pairs, config)
    if files and config.samples_shown:
        _add_samples(page, files, references, config.samples_shown)
    page.write(config.title)


def _read_verdicts(spec: str) -> list[Any]:
    from jaxalign import data, evaluation

    judge, path = measures.name_and_path(spec)
    if Path(path).is_file() and not Path(path).stat().st_size:  # a study that nobody has answered yet exports this
        print(f"jaxalign: --verdicts: {path} holds no verdict yet: left out", file=sys.stderr)
        return []
    return evaluation.read_judged(data.load_records(path), judge=judge or "")


class _Page:
    """The parts of the page, and the files that are written beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[Any] = []
        self._tables: dict[str, tuple[str, Sequence[Mapping[str, object]]]] = {}
        self._figures: dict[str, Any] = {}

    def text(self, heading: str, text: str = "") -> None:
        from jaxalign.evaluation import ReportText

        self.parts.append(ReportText(heading, text))

    def table(self, name: str, caption: str, rows: Sequence[Mapping[str, object]]) -> None:
        from jaxalign.evaluation import ReportTable

        if rows:
            self.parts.append(ReportTable(caption, rows))
            self._tables[name] = (caption, rows)

    def figure(self, name: str, caption: str, figure: Any) -> None:
        from jaxalign.evaluation import ReportFigure

        self.parts.append(ReportFigure(caption, figure))
        self._figures[name] = figure

    def write(self, title: str) -> None:
        from jaxalign import evaluation

        page = evaluation.html_report(title, self.parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, (caption, rows) in self._tables.items():
            evaluation.save_table(rows, self.folder / name, caption=caption)
        for name, figure in self._figures.items():
            evaluation.save_figure(figure, self.folder / name)
        (self.folder / "report.html").write_text(page, encoding="utf-8")
        written = [f"{self.folder / 'report.html'}"]
        written += [f"{self.folder / name}.md, .tex, .csv" for name in self._tables]
        written += [f"{self.folder / name}.png, .svg" for name in self._figures]
        sys.stdout.write("\n".join(written) + "\n")


def _add_run(page: _Page, folder: Path, seed: int) -> None:
    from jaxalign import evaluation

    if not folder.is_dir():
        raise InputError(f"--run: {folder}: no such folder{nearest_path(folder)}")
    known = [name for name in ("metrics.jsonl", "config.json", "results.json") if (folder / name).is_file()]
    if not known:
        raise InputError(f"--run: {folder} holds neither metrics.jsonl, config.json nor results.json")
    page.text("The run", f"{folder}")
    if "metrics.jsonl" in known:
        curves = _curves(folder / "metrics.jsonl")
        shown = dict(list(curves.items())[:_CURVES])
        if shown:
            more = f"; {len(curves) - len(shown)} more numbers are in metrics.jsonl" if len(curves) > len(shown) else ""
            page.figure("curves", f"Over training{more}.", evaluation.plot_curves(shown))
    if "config.json" in known:
        settings = measures.read_json(folder / "config.json")
        if isinstance(settings, dict):
            rows = [{"setting": name, "value": _setting(value)} for name, value in settings.items()]
            page.table("settings", "Settings of the run.", rows)
    if "results.json" in known:
        _add_frontier(page, measures.read_frontier(folder / "results.json"), seed)


def _add_frontier(page: _Page, points: Sequence[Any], seed: int, name: str = "frontier") -> None:
    """Figure and table; the area where every method has been measured over a common range."""
    from jaxalign import evaluation

    if not points:
        return
    page.text("Reward against KL")
    figure = evaluation.plot_frontier(points, pareto=True)
    page.figure(name, "Reward against KL, with 95 % intervals over prompts; the grey line is what none beats.", figure)
    page.table(name, "The points of the figure.", evaluation.frontier_rows(points))
    curves = [point for point in points if not point.kl_is_bound]
    starts: dict[str, float] = {}
    for point in curves:
        starts[point.method] = min(starts.get(point.method, point.kl.estimate), point.kl.estimate)
    span = max([0.0, *starts.values()]), max([0.0, *(point.kl.estimate for point in curves)])
    if len(curves) > len(starts) and span[0] < span[1]:
        rows = evaluation.frontier_area_rows(evaluation.frontier_area([curves], kl_range=span, seed=seed))
        page.table(f"{name}_area", "Area under the frontier: the mean best reward over KL budgets.", rows)


def _add_completions(page: _Page, measured: "measures.Measured", config: EvaluateConfig) -> None:
    page.text("The completions", "\n".join(measured.notes))
    page.table("texts", "Length and diversity, with 95 % bootstrap intervals over prompts.", measured.texts)
    page.table("scores", "Scores of the completions, with 95 % bootstrap intervals over prompts.", measured.scores)
    page.table("differences", "Mean reward against the first file's, prompt by prompt.", measured.differences)
    _add_frontier(page, measured.points, config.seed, "completions_frontier")


def _add_verdicts(page: _Page, pairs: Sequence[Any], config: EvaluateConfig) -> None:
    from jaxalign import evaluation

    words = {"half": "half a win", "exclude": "left out", "separate": "neither won nor lost"}
    invalid = sum(pair.outcome == "invalid" for pair in pairs)
    page.text(
        "Win rates",
        f"{len(pairs)} comparisons, {invalid} of them without a valid verdict, which are left out. "
        f"In win rates and tests a tie is {words[config.ties]}.",
    )
    points = evaluation.win_rate_points(pairs, ties=config.ties, seed=config.seed)
    page.table(
        "win_rates", "Win rates with 95 % intervals, plain and at equal length.", evaluation.win_rate_rows(points)
    )
    curves = False
    for over, place in (("temperature", "sampling temperature"), ("step", "training")):
        if len({getattr(point, over) for point in points} - {None}) > 1:
            curves = True
            figure = evaluation.plot_win_rate(points, over=over)  # type: ignore[arg-type]
            page.figure(f"win_rate_over_{over}", f"Win rate over {place}, with 95 % intervals.", figure)
    rows = evaluation.pairwise_rows(pairs, seed=config.seed)
    page.table("pairwise", "Win, tie, lose and delta = win - lose, % of what was judged.", rows)
    if rows and not curves:  # which say the same better than a bar a point
        page.figure("pairwise", "Wins, ties and losses.", evaluation.plot_pairwise(rows))
    tests = evaluation.paired_test_rows(pairs, ties=config.ties, seed=config.seed)
    page.table("paired_tests", "Methods against each other on the same prompts.", tests)
    agreement = evaluation.judge_agreement_rows(pairs, seed=config.seed)
    studies = evaluation.human_study_rows(evaluation.human_studies(pairs, ties=config.ties, seed=config.seed))
    if len(studies[0]) > 1:
        page.table("human_study", "People against judges: win rates and how often they agree.", studies)
    page.table("judge_agreement", "How often judges say the same of the same outputs.", agreement)


def _add_samples(
    page: _Page, files: "Sequence[measures.Completions]", references: Mapping[str, str] | None, most: int
) -> None:
    from jaxalign.evaluation import ReportSamples

    first = [file.first_of_each() for file in files]
    prompts = [prompt for prompt in first[0] if all(prompt in other for other in first)]
    columns = [file.name for file in files]
    if not prompts:
        page.text("Samples", "The files have no prompt in common: nothing can be shown side by side.")
        return
    if references is not None:
        columns.append("reference")
    rows = [
        (prompt, [own[prompt] for own in first] + ([] if references is None else [references.get(prompt, "")]))
        for prompt in prompts[:most]
    ]
    page.text(
        "Samples", f"The first completion of the first {len(rows)} of {len(prompts)} common prompts, not selected."
    )
    page.parts.append(ReportSamples(columns, rows))


def _curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Every number of metrics.jsonl that moves, over the step; the names people look for first."""
    from jaxalign import data

    rows = data.load_records(path)
    curves: dict[str, list[tuple[float, float]]] = {}
    for index, row in enumerate(rows):
        if not _number(row.get("step")):
            raise InputError(f"{rows.place(index)}: missing field 'step', or no number")
        for name, value in row.items():
            if name != "step" and _number(value):
                curves.setdefault(name, []).append((row["step"], value))
    moving = [name for name, curve in curves.items() if len({value for _, value in curve}) > 1]
    return {name: curves[name] for name in sorted(moving, key=lambda name: not name.startswith(_FIRST))}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
