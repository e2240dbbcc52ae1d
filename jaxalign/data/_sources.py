"""Where records come from: local JSONL, JSON, CSV and Parquet files, saved data set folders, hub ids."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, overload

from jaxalign.data._counters import Counters
from jaxalign.data._hub import parse_source, read_hub
from jaxalign.errors import InputError, nearest_path

OnBadRow = Literal["error", "skip"]

__all__ = ["OnBadRow", "Records", "load_records"]

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
# CSV knows only strings: these fields hold JSON values (true, 0.5, lists).
_CSV_JSON_FIELDS = frozenset(
    {"messages", "responses", "ratings", "label", "margin", "finished", "chosen_finished", "rejected_finished"}
)
_CSV_FIELD_LIMIT = 2**30


class Records(Sequence[Mapping[str, Any]]):
    """Rows as dicts, each with its place ("FILE: row 7", rows counted from 1), and the counters of reading them.

    A slice is ``Records`` again, with places kept and counters of its own.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], places: Sequence[str], counters: Counters) -> None:
        if len(rows) != len(places):
            raise ValueError("one place a row")
        self._rows = list(rows)
        self._places = list(places)
        self.counters = counters

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Records:
        if isinstance(index, slice):
            rows = self._rows[index]
            return Records(rows, self._places[index], Counters(rows_read=len(rows)))
        return self._rows[index]

    def place(self, index: int) -> str:
        """Where the row came from, for messages."""
        return self._places[index]


def place_of(records: Sequence[Any], index: int) -> str:
    """Where a record came from, for messages: its file and row, or its number in a list."""
    return records.place(index) if isinstance(records, Records) else f"row {index + 1}"


def counters_of(records: Sequence[Any]) -> Counters:
    """New counters of what becomes of records, with what reading them has counted."""
    counters = Counters(rows_read=len(records))
    if isinstance(records, Records):
        counters.rows_read = records.counters.rows_read
        counters.skipped.update(records.counters.skipped)
    return counters


def _no_constant(value: str) -> Any:
    raise ValueError(f"{value} is not JSON")


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _reason(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _open(path: Path, newline: str = "\n") -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


# Every reader yields (row number from 1, row) or (row number, the error of that row).
_Row = tuple[int, Any]


def _read_jsonl(path: Path) -> Generator[_Row, None, None]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield number, _parse(line.rstrip("\r\n"))  # a line break in a string is not what was wrong
            except ValueError as error:
                yield number, InputError(f"invalid JSON: {_reason(error)}")


def _read_json(path: Path) -> Generator[_Row, None, None]:
    with _open(path) as file:
        text = file.read()
    try:
        rows = _parse(text)
    except ValueError as error:
        if text.lstrip().startswith("{"):  # JSON lines under the name .json, as hubs have them
            yield from _read_jsonl(path)
            return
        raise InputError(f"{path}: invalid JSON: {_reason(error)}") from None
    if isinstance(rows, Mapping):
        rows = [rows]
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, got {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def _read_csv(path: Path) -> Generator[_Row, None, None]:
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)
    try:
        with _open(path, newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header is None:
                raise InputError(f"{path}: empty file")
            number = 0
            while True:
                number += 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise InputError(f"{path}: row {number}: invalid CSV: {error}") from None
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield number, InputError(f"invalid CSV: {len(cells)} cells, the header has {len(header)}")
                    continue
                yield number, {name: _csv_value(name, cell) for name, cell in zip(header, cells, strict=True)}
    finally:
        csv.field_size_limit(limit)


def _csv_value(name: str, cell: str) -> Any:
    if name not in _CSV_JSON_FIELDS:
        return cell
    if cell == "":
        return None
    try:
        return _parse(cell.lower() if cell in ("True", "False", "TRUE", "FALSE") else cell)
    except ValueError:
        return cell  # the check of the field's type names it


def _read_parquet(path: Path) -> Generator[_Row, None, None]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for block in file.iter_batches():
            for row in block.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file: {_reason(error)}") from None


def _dataset_rows(dataset: Any, split: str, name: str) -> Generator[_Row, None, None]:
    if isinstance(dataset, Mapping):  # a DatasetDict
        if split not in dataset:
            raise InputError(f"{name}: no split {split!r}, it has: {', '.join(map(str, dataset))}")
        dataset = dataset[split]
    yield from enumerate(dataset, start=1)


def _read_folder(path: Path, split: str) -> Generator[_Row, None, None]:
    import datasets

    saved = any((path / name).exists() for name in ("dataset_dict.json", "state.json"))
    try:
        dataset = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{path}: not a data set folder: {_reason(error)}") from None
    yield from _dataset_rows(dataset, split, str(path))


def _rows(source: str, split: str, config: str | None) -> Generator[_Row, None, None]:
    path = Path(source)
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        like_a_path = (
            suffix in _SUFFIXES or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
        )
        if like_a_path or not source:
            raise InputError(f"{source or repr(source)}: no such file or folder{nearest_path(source)}")
        yield from _dataset_rows(read_hub(source, split, config), split, source)
        return
    if config is not None:
        raise InputError(f"{source}: a configuration ({config!r}) is only for hub ids")
    if path.is_dir():
        yield from _read_folder(path, split)
        return
    if split != "train":
        raise InputError(f"{source}: no split {split!r}, a single file has only 'train'")
    if suffix in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path)
    elif suffix == ".json":
        yield from _read_json(path)
    elif suffix == ".csv":
        yield from _read_csv(path)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise InputError(f"{source}: unknown kind of file, known: {', '.join(_SUFFIXES)} (text kinds also with .gz)")


def load_records(
    path_or_hub_id: str | Path,
    split: str = "train",
    *,
    config: str | None = None,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
) -> Records:
    """Rows of a data set as dicts.

    ``path_or_hub_id``: a JSONL, JSON, CSV (each also ``.gz``) or Parquet file, a folder saved by
    ``datasets.save_to_disk`` or one of data files, or a hub id. A hub id's configuration is ``config``, or stands
    behind it, "ID:CONFIG"; a folder's or hub id's split is ``split``, or stands behind it, "@SPLIT" (and ``split`` is
    "train", which it is by itself). What exists under that very name comes first.
    ``limit`` keeps the first rows. ``on_bad_row="skip"`` skips and counts a row that is no JSON object.

    Raises ``InputError`` naming the file (a missing or unreadable file, an unknown split, two different splits or
    configurations) or the file and row (rows are
    counted from 1; in JSONL they are line numbers).
    """
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}, must be 'error' or 'skip'")
    source, counters = str(path_or_hub_id), Counters()
    name, own_config, own_split = parse_source(source)
    for what, own, given, unsaid in (
        ("splits", own_split, split, "train"),
        ("configurations", own_config, config, None),
    ):
        if own is not None and given not in (own, unsaid):
            raise InputError(f"{source}: two different {what}, {own!r} in the name and {given!r} beside it; give one")
    rows: list[Mapping[str, Any]] = []
    places: list[str] = []
    iterator = _rows(name, own_split or split, own_config or config)
    with contextlib.closing(iterator):
        while limit is None or len(rows) < limit:
            try:
                item = next(iterator, None)
            except UnicodeDecodeError as error:
                raise InputError(f"{source}: not UTF-8 text: {_reason(error)}") from None
            except (gzip.BadGzipFile, EOFError) as error:
                raise InputError(f"{source}: not a readable gzip file: {_reason(error)}") from None
            if item is None:
                break
            number, row = item
            counters.rows_read += 1
            if not isinstance(row, InputError | Mapping):
                row = InputError(f"expected an object, got {type(row).__name__}")
            if isinstance(row, InputError):
                if on_bad_row == "error":
                    raise InputError(f"{source}: row {number}: {row}")
                counters.skipped[str(row).split(":", 1)[0]] += 1
                continue
            rows.append(row)
            places.append(f"{source}: row {number}")
    if not rows:
        raise InputError(f"{source}: no rows")
    return Records(rows, places, counters)
