"""What a study found, as files: every judgement, records to train on, verdicts to count wins of."""

import collections
import csv
import datetime
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.errors import InputError
from jaxalign.evaluation._messages import as_text
from jaxalign.evaluation._output_pairs import Content, Pair
from jaxalign.evaluation._tables import spreadsheet_text
from jaxalign.evaluation.study._store import Judgement, Store

__all__ = ["Exported", "export_study"]

Preferences = Literal["majority", "every"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    judgements: int
    records: int
    tied: int
    """Of the axis of the records: pairs without a majority, or judgements that are ties; no record is made of them."""
    axis: str
    files: tuple[Path, ...]


def export_study(
    store: str | Path,
    output: str | Path,
    *,
    axis: str | None = None,
    preferences: Preferences = "majority",
    ours: str | None = None,
) -> Exported:
    """Write ``judgements.csv``, ``preferences.jsonl`` and ``verdicts.jsonl``; the study may go on meanwhile.

    Args:
        store: the study's file.
        output: a folder; files of these names in it are replaced.
        axis: whose judgements make the records; None: the only one, or "overall".
        preferences: "majority" makes one record of a pair, where more raters prefer one output than the other; "every"
            makes one of each judgement. Ties make none.
        ours: the system whose wins the verdicts count; None: as the study was begun.

    Raises:
        InputError: no study's file, an unknown axis or system, none named where the study has several axes.
    """
    with Store(store) as opened:
        study, judgements = opened.study, opened.judgements()
    chosen_axis = _axis([one.name for one in study.axes], axis)
    systems = {system for pair in study.pairs for system in pair.systems}
    ours = ours if ours is not None else study.ours
    if ours is not None and ours not in systems:
        raise InputError(f"--ours: no system {ours!r} in this study; it has {', '.join(sorted(systems))}")
    of_axis = [one for one in judgements if one.axis == chosen_axis]
    preferred = _majority(of_axis) if preferences == "majority" else [(one.pair, one.preferred) for one in of_axis]
    records = [_record(pair, better) for pair, better in preferred if better is not None]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        folder / "judgements.csv": _csv(judgements),
        folder / "preferences.jsonl": _lines(records),
        folder / "verdicts.jsonl": _lines(
            _verdict(one, ours) for one in judgements if ours in (None, *one.pair.systems)
        ),
    }
    for path, content in files.items():
        _write(path, content)
    return Exported(len(judgements), len(records), len(preferred) - len(records), chosen_axis, tuple(files))


def _axis(names: Sequence[str], wanted: str | None) -> str:
    if wanted is None:
        if len(names) == 1:
            return names[0]
        if "overall" in names:
            return "overall"
        raise InputError(f"--axis: say whose judgements make the records: {', '.join(names)}")
    if wanted not in names:
        raise InputError(f"--axis: the study asked about {', '.join(names)}, not {wanted!r}")
    return wanted


def _majority(judgements: Iterable[Judgement]) -> list[tuple[Pair, int | None]]:
    """Each pair's better output, 0 or 1; None where as many raters prefer either (ties count for neither)."""
    votes: dict[int, collections.Counter[int | None]] = {}
    pairs: dict[int, Pair] = {}
    for one in judgements:
        pairs[id(one.pair)] = one.pair
        votes.setdefault(id(one.pair), collections.Counter())[one.preferred] += 1
    return [
        (pairs[key], None if counted[0] == counted[1] else int(counted[1] > counted[0]))
        for key, counted in votes.items()
    ]


def _record(pair: Pair, better: int) -> dict[str, Any]:
    return {"prompt": pair.prompt, "chosen": pair.outputs[better], "rejected": pair.outputs[1 - better]}


def _verdict(one: Judgement, ours: str | None) -> dict[str, Any]:
    """A judged pair, as win rates are computed from; which of the two was shown first does not matter any more."""
    at = 1 if ours == one.pair.systems[1] else 0
    return {
        "prompt": one.pair.prompt,
        "ours": _text(one.pair.outputs[at]),
        "theirs": _text(one.pair.outputs[1 - at]),
        "axis": one.axis,
        "outcome": "tie" if one.preferred is None else "win" if one.preferred == at else "lose",
        "method": one.pair.systems[at],
        "against": one.pair.systems[1 - at],
        "judge": "people",
        "rater": one.rater,
    }


def _text(output: Content) -> str:
    if isinstance(output, str):
        return output
    if len(output) == 1:
        return output[0]["content"]
    return as_text(output, "a pair", name="outputs")


def _csv(judgements: Iterable[Judgement]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([
        "rater", "item", "axis", "system_a", "system_b", "preference", "flipped", "seconds", "comment", "received"
    ])  # fmt: skip
    for one in judgements:
        when = datetime.datetime.fromtimestamp(one.received, datetime.UTC).isoformat(timespec="seconds")
        preference = "tie" if one.preferred is None else one.pair.systems[one.preferred]
        cells = [one.rater, one.pair.row, one.axis, *one.pair.systems, preference, str(one.flipped).lower(),
                 f"{one.seconds:.1f}", one.comment, when]  # fmt: skip
        writer.writerow([spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue().encode()


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write(path: Path, content: bytes) -> None:
    """So that the file is never seen half written."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
