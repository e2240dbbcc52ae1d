"""Metrics from (sum, count) pairs to rows in a file: the only place that divides."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.training._errors import about


def means(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Return ``{name: sum / count}``, read from the device in one transfer; a name whose count is 0 is left out."""
    pairs = jax.device_get(dict(metrics))
    return {name: float(np.float64(total) / np.float64(count)) for name, (total, count) in pairs.items() if count != 0}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, each with its ``step``; none where there is no file. What is no row is passed over.

    A kill, a disk or a hand may have left less than a row at the end, and whoever only reads goes on without it.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [row for row in map(_row, lines) if row is not None]


class MetricWriter:
    """Appends one JSON object a line to ``metrics.jsonl``, and the same numbers to TensorBoard if asked.

    Every row is flushed as it is written, so a killed process loses none. A number that is not finite is written as
    null. Only process 0 writes.

    Args:
        path: the JSON-lines file; its folder is made.
        step: the number of updates the run starts from. Rows of later steps, which a killed run wrote after its last
            checkpoint, are removed (all rows if 0), so that a resumed run leaves the file an unbroken one would.
        tensorboard: folder of the TensorBoard files; None writes none.

    Raises:
        InputError: if a line of the file is not a row (a last one that was cut short is dropped), or TensorBoard files
            are asked for and ``tensorboardX`` is not installed.
        OSError: a row or the file cannot be written; it names the file.
    """

    def __init__(self, path: str | Path, *, step: int = 0, tensorboard: str | Path | None = None) -> None:
        self._file = None
        self._board: Any = None
        if jax.process_index() != 0:
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if tensorboard is not None:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                raise InputError("TensorBoard files need tensorboardX: pip install 'jaxalign[tensorboard]'") from None
            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else 0)
        with about(path):
            _truncate(path, step)
        # Unbuffered: what a full disk refused is not tried again at the end.
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Write one row: ``{"step": step, **values}``."""
        if self._file is None:
            return
        row = {name: value if _writable(value) else None for name, value in values.items()}
        line = (json.dumps({"step": step, **row}) + "\n").encode()
        with about(self._path):
            while line:
                line = line[self._file.write(line) :]
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _writable(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _row(line: bytes) -> dict[str, Any] | None:
    """What ``MetricWriter.write`` wrote; None if this is anything else."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _truncate(path: Path, step: int) -> None:
    """Keep the rows up to ``step``; the file is replaced at once, so that a kill here loses nothing either."""
    if not path.exists():
        return
    kept = []
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=0)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            if number == last:
                continue
            raise InputError(f"{path}: row {number + 1} is not a JSON object with a step")
        if step > 0 and row["step"] <= step:
            kept.append(line + b"\n")
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
