"""What an experiment found, in one form for all of them: ``OUTPUT_DIR/result.json``.

An experiment writes a ``Result``; ``experiments.report`` reads them and makes of them the page with all figures and
tables, and the tables of ``experiments/README.md``. Numbers are intervals wherever something was sampled. What the
README shows of a result is kept in the repository (``keep``).
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from jaxalign.errors import InputError
from jaxalign.evaluation import Interval, Rounded, student_interval

__all__ = [
    "Claim",
    "Figure",
    "Result",
    "Table",
    "Value",
    "Verdict",
    "difference_over_seeds",
    "finished",
    "keep",
    "load",
    "mean_over_seeds",
    "save",
    "verdict",
]

Verdict = Literal["holds", "reversed", "undecided"]
_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number of the paper beside ours."""

    what: str
    """Such as "win rate against the reference at temperature 0, DPO (%)"."""
    paper: str = ""
    """As it is published; empty = the paper has no such number."""
    ours: Interval
    seeds: int = 1
    """Training seeds behind it."""
    decimals: int = 1
    """That are shown, by its unit: 1 of points and %, 2 of nats and logarithms, more of small shares."""

    @property
    def shown(self) -> Rounded:
        """``ours`` as tables have it; what was counted has no interval."""
        return Rounded(self.ours.estimate if self.ours.low == self.ours.high else self.ours, self.decimals)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of a paper, a statistic that is positive if it is true, and what came out."""

    claim: str
    """The statement."""
    source: str
    """Where it is made, such as "Rafailov et al. 2023, figure 2 left"; empty = in no paper."""
    statistic: str
    """What was computed, with its unit."""
    found: Interval
    """Its value; the interval says over what in ``statistic``."""
    by_seed: Sequence[float] = ()
    """Its value in every training seed."""
    decimals: int = 1
    """That are shown, by its unit: 1 of points and %, 2 of nats and logarithms, more of small shares."""
    why: str = ""
    """What a reader has to know of it, such as why the order is not the paper's."""
    undecidable: str = ""
    """Why it stays undecided whatever came out, such as that no person was asked; empty = the numbers decide."""

    @property
    def shown(self) -> Rounded:
        """``found`` as tables have it."""
        return Rounded(self.found, self.decimals)

    @property
    def verdict(self) -> Verdict:
        """By ``found`` and ``by_seed``, see the function ``verdict``, unless it is ``undecidable``."""
        return "undecided" if self.undecidable else verdict(self.found, self.by_seed)

    @property
    def reason(self) -> str:
        """What keeps it undecided, then ``why``."""
        undecided = self.undecidable
        if self.verdict == "undecided" and not undecided:
            if len(self.by_seed) == 1:
                undecided = "one seed decides nothing"
            elif self.found.low <= 0 <= self.found.high:
                undecided = "the interval holds 0"
            else:
                undecided = "the seeds lie on both sides of 0"
        return "; ".join(filter(None, (undecided, self.why)))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of a paper, redrawn."""

    of: str
    """Such as "Rafailov et al. 2023, figure 2 left"; empty = no figure of a paper."""
    caption: str
    """What is seen."""
    file: str
    """An SVG or PNG, from the folder of the result."""
    image: str = ""
    """Its PNG's name in ``docs/images``; empty = ``experiments/README.md`` does not show it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a paper, computed anew."""

    of: str
    """Such as "Liu et al. 2023, table 1"; empty = no table of a paper."""
    caption: str
    """What is in it."""
    rows: Sequence[Mapping[str, object]]
    """Cells are texts, numbers, or what ``evaluation.markdown_table`` takes besides; kept as texts."""
    shown: bool = False
    """Whether ``experiments/README.md`` shows it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """An experiment's outcome."""

    experiment: str
    """Name of its module."""
    preset: str
    title: str
    setting: str
    """Models, data and sizes, in a sentence or two."""
    judges: Mapping[str, str]
    """Axis -> what judges it."""
    seeds: int
    """Training seeds of the methods that a claim is made of."""
    seconds: float
    """Of all stages, whenever they ran."""
    values: Sequence[Value] = ()
    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = field(default_factory=tuple)
    """What a reader has to know to believe it."""


def verdict(found: Interval, by_seed: Sequence[float]) -> Verdict:
    """ "holds" if the interval and the value in every seed lie above 0, "reversed" if all lie below, "undecided" else.

    One seed alone decides nothing: nobody knows how far another would be. No seed at all: nothing was trained for it.
    """
    if len(by_seed) == 1:
        return "undecided"
    if found.low > 0 and all(value > 0 for value in by_seed):
        return "holds"
    if found.high < 0 and all(value < 0 for value in by_seed):
        return "reversed"
    return "undecided"


def mean_over_seeds(
    own: npt.ArrayLike, other: npt.ArrayLike = (0.0,), items: Sequence[tuple[float, int]] = ()
) -> tuple[Interval, list[float]]:
    """Mean of ``own`` minus mean of ``other``, its 95 % interval (``student_interval``), and the difference by seed.

    The variance is that of each side's seeds over their number, and that of ``items`` on top. (Three seeds are too few
    to resample: the bootstrap's interval misses in a quarter of the cases.)

    Args:
      own: ``[S]``, a value of every seed.
      other: ``[R]``; a side of one value adds no variance of seeds. In the list seeds are paired as far as both go; one
        that is alone, such as that of a model that was not trained, stands for all.
      items: the variance of the estimate over what was measured on, and its degrees of freedom.
    """
    one, two = np.asarray(own, np.float64), np.asarray(other, np.float64)
    seeds = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in (one, two) if len(values) > 1]
    count = min(len(one), len(two)) if min(len(one), len(two)) > 1 else max(len(one), len(two))
    by_seed = np.resize(one, count) - np.resize(two, count)
    return student_interval(float(one.mean() - two.mean()), [*seeds, *items]), by_seed.tolist()


def difference_over_seeds(own: npt.ArrayLike, other: npt.ArrayLike) -> tuple[Interval, list[float]]:
    """Mean of own - other over seeds and items, its 95 % interval over both, and the difference in each seed.

    ``mean_over_seeds`` of the seeds' means; the variance of the items is that of their differences over their number.

    Args:
      own: ``[S, N]``, a score of every seed and item.
      other: ``[R, N]``; items are the same as ``own``'s.
    """
    first, second = np.asarray(own, np.float64), np.asarray(other, np.float64)
    items = first.mean(axis=0) - second.mean(axis=0)
    part = (float(items.var(ddof=1)) / len(items), len(items) - 1)
    return mean_over_seeds(first.mean(axis=1), second.mean(axis=1), [part])


def save(folder: Path, result: Result) -> Path:
    """Write ``result.json``.

    Raises:
      InputError: a figure that is not there.
    """
    from jaxalign.evaluation import cell_text

    for figure in result.figures:
        if not (folder / figure.file).is_file():
            raise InputError(f"result of {result.experiment}: there is no figure {folder / figure.file}")
    value = dataclasses.asdict(result)
    for table, kept in zip(result.tables, value["tables"], strict=True):
        kept["rows"] = [{name: cell_text(cell) for name, cell in row.items()} for row in table.rows]
    return _write(folder / _FILE, value)


def keep(folder: Path, result: Result, to: Path, images: Path) -> Path:
    """What ``experiments/README.md`` shows of the result in ``folder``: ``to/EXPERIMENT.json``, few kilobytes, whose
    figures are PNG files in ``images``.

    Raises:
      InputError: a figure without its PNG.
    """
    figures = [figure for figure in result.figures if figure.image]
    to.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        drawn, image = (folder / figure.file).with_suffix(".png"), images / figure.image
        if not drawn.is_file():
            raise InputError(f"result of {result.experiment}: there is no figure {drawn}")
        if not image.exists() or not image.samefile(drawn):
            shutil.copyfile(drawn, image)
    within = Path(os.path.relpath(images, to))
    shown = dataclasses.replace(
        result,
        figures=[dataclasses.replace(figure, file=(within / figure.image).as_posix()) for figure in figures],
        tables=[table for table in result.tables if table.shown],
    )
    return _write(to / f"{result.experiment}.json", dataclasses.asdict(shown))


def _write(path: Path, value: dict[str, Any]) -> Path:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def finished(output: Path, preset: str) -> bool:
    """Whether this preset came to its end here before; a result that cannot be read is to be written again."""
    try:
        return load(output).preset == preset
    except InputError:
        return False


def load(path: Path) -> Result:
    """Read what ``save`` wrote into this folder, or what ``keep`` wrote into this file.

    Raises:
      InputError: there is none, or it is none.
    """
    path = path if path.suffix == ".json" else path / _FILE
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Result(
            **value
            | {
                "values": [Value(**row | {"ours": Interval(**row["ours"])}) for row in value["values"]],
                "claims": [Claim(**row | {"found": Interval(**row["found"])}) for row in value["claims"]],
                "figures": [Figure(**row) for row in value["figures"]],
                "tables": [Table(**row) for row in value["tables"]],
            }
        )
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; the experiment writes it at its end") from error
    except (json.JSONDecodeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not the result of an experiment ({error})") from error
