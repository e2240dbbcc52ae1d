"""Judged pairs as records, and the win rates of what they hold: by method, axis, judge, temperature and step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from jaxalign.data import Records
from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval
from jaxalign.evaluation._length_control import length_controlled_win_rate
from jaxalign.evaluation._messages import as_text
from jaxalign.evaluation._tables import Percent
from jaxalign.evaluation._wins import Outcome, TieRule, WinRate, win_rate

__all__ = ["JudgedPair", "WinRatePoint", "read_judged", "win_rate_points", "win_rate_rows"]


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """One verdict on two outputs to a prompt: a line of ``verdicts.jsonl``."""

    prompt: str
    ours: str
    """The output of ``method``."""
    theirs: str
    """The output of ``against``."""
    outcome: Outcome
    """For ours, whatever the order in which they were shown."""
    axis: str = "overall"
    """What was asked about."""
    method: str = "ours"
    against: str = "theirs"
    judge: str = ""
    temperature: float | None = None
    """At which ours was sampled."""
    step: int | None = None
    """Of training, after which ours was sampled."""
    rater: str = ""
    """Which person, where ``judge`` is people."""


@dataclass(frozen=True)
class Setting:
    """What judged pairs have in common that belong into one rate."""

    method: str
    against: str
    axis: str
    judge: str
    temperature: float | None
    step: int | None

    @classmethod
    def of(cls, pair: JudgedPair) -> "Setting":
        return cls(**{field.name: getattr(pair, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class WinRatePoint:
    """A win rate and where it was measured: a point of a curve over temperature or training, a row of a table."""

    method: str
    against: str
    axis: str
    judge: str
    temperature: float | None
    step: int | None
    wins: WinRate
    length_controlled: Interval | None
    """The rate at equal length in words; None where it cannot be told (fewer than two prompts, lengths that all differ
    alike)."""


def read_judged(records: Sequence[Mapping[str, Any]], *, judge: str = "") -> list[JudgedPair]:
    """Rows with ``prompt``, ``ours``, ``theirs``, ``outcome`` and what else a ``JudgedPair`` has, as such.

    ``names``, a list of two, stands for ``method`` and ``against``. Other fields are not read; prompts may be messages.

    Args:
        records: the rows.
        judge: who judged, whatever the rows say; "": as they say.

    Raises:
        InputError: names the row and the field.
    """
    found = []
    for index, record in enumerate(records):
        place = records.place(index) if isinstance(records, Records) else f"row {index + 1}"
        values: dict[str, Any] = {}
        if (names := record.get("names")) is not None:
            if not isinstance(names, list) or len(names) != 2:
                raise InputError(f"{place}: field 'names' is {names!r:.60}, not two names")
            record = {"method": names[0], "against": names[1], **record}
        if judge:
            record = {**record, "judge": judge}
        for field in fields(JudgedPair):
            value = record.get(field.name)
            if value is not None:
                values[field.name] = _checked(field.name, value, place)
            elif field.name in ("prompt", "ours", "theirs", "outcome"):
                raise InputError(f"{place}: missing field {field.name!r}")
        found.append(JudgedPair(**values))
    return found


def win_rate_points(
    pairs: Sequence[JudgedPair], *, ties: TieRule = "half", level: float = 0.95, seed: int = 0
) -> list[WinRatePoint]:
    """A win rate for every method, opponent, axis, judge, temperature and step there is; in order of appearance.

    Comparisons of one prompt are resampled together. A setting without an outcome that counts has no point.
    """
    points = []
    for setting, own in by_setting(pairs).items():
        outcomes, prompts = [pair.outcome for pair in own], [pair.prompt for pair in own]
        if not any(outcome in ("win", "lose") or (outcome == "tie" and ties != "exclude") for outcome in outcomes):
            continue
        wins = win_rate(outcomes, ties=ties, groups=prompts, level=level, seed=seed)
        try:
            controlled = length_controlled_win_rate(
                outcomes,
                [len(pair.ours.split()) for pair in own],
                [len(pair.theirs.split()) for pair in own],
                ties=ties,
                groups=prompts,
                level=level,
                seed=seed,
            )
        except InputError:
            controlled = None
        points.append(WinRatePoint(**vars(setting), wins=wins, length_controlled=controlled))
    return points


def win_rate_rows(points: Sequence[WinRatePoint]) -> list[dict[str, object]]:
    """One row a point: percentages with intervals (Wilson's, or the bootstrap's where prompts repeat), and counts."""
    return [
        {
            **setting_cells(points, point),
            "win rate %": Percent(point.wins.interval),
            "at equal length %": None if point.length_controlled is None else Percent(point.length_controlled),
            "wins": point.wins.wins,
            "ties": point.wins.ties,
            "losses": point.wins.losses,
            "invalid": point.wins.invalid,
        }
        for point in points
    ]


def by_setting(pairs: Sequence[JudgedPair]) -> dict[Setting, list[JudgedPair]]:
    """The pairs of each setting, in order of appearance."""
    found: dict[Setting, list[JudgedPair]] = {}
    for pair in pairs:
        found.setdefault(Setting.of(pair), []).append(pair)
    return found


def setting_cells(everything: Sequence[Any], one: Any) -> dict[str, object]:
    """Cells that say what a row is about; of axis, judge, temperature and step only those that tell rows apart."""
    cells: dict[str, object] = {"method": one.method, "against": one.against}
    for name in ("axis", "judge", "temperature", "step"):
        values = {getattr(other, name) for other in everything}
        if len(values) > 1 or (name in ("temperature", "step") and values != {None}):
            value = getattr(one, name)
            cells[name] = f"{value:g}" if isinstance(value, float) else value
    return cells


def _checked(name: str, value: Any, place: str) -> Any:
    if name == "prompt":
        return as_text(value, place)
    if name == "outcome" and value not in get_args(Outcome):
        raise InputError(f"{place}: field 'outcome' is {value!r}, must be one of {', '.join(get_args(Outcome))}")
    if name in ("temperature", "step"):
        if isinstance(value, bool) or not isinstance(value, int | float) or (name == "step" and int(value) != value):
            raise InputError(
                f"{place}: field {name!r} is {value!r}, no {'number' if name != 'step' else 'whole number'}"
            )
        return float(value) if name == "temperature" else int(value)
    if not isinstance(value, str):
        raise InputError(f"{place}: field {name!r} is a {type(value).__name__}, not a string")
    if name in ("axis", "method", "against", "judge") and not value.isprintable():  # it heads tables and figures
        raise InputError(f"{place}: field {name!r} is {value!r}: a name must be printable")
    return value
