"""A file of one line a prompt, written block by block, that a killed run leaves in a state to go on from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

__all__ = ["Journal", "check_settings", "lines_of", "write_whole"]


class Journal:
    """Rows of JSON objects in prompt order, appended a block at a time.

    A block is computed by the same calls whether or not a run was interrupted before it, so a block of which only a
    part reached the disk is cut off and computed again: to the bit what it would have been.
    """

    def __init__(self, path: Path, *, total: int, block: int) -> None:
        """Open (or begin) the file of ``total`` rows in blocks of ``block``.

        Raises:
            InputError: a row that is no JSON object, naming file and line; or more than ``total`` rows.
        """
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        if len(whole) > total:
            raise InputError(f"{path}: {len(whole)} rows for {total} prompts: not of this run")
        kept = len(whole) if len(whole) == total else len(whole) // block * block
        for number, line in enumerate(whole[:kept], start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or row.get("index") != number - 1:
                raise InputError(f"{path}: line {number} is damaged; remove it and what follows it to go on from there")
            self.rows.append(row)
        size = sum(map(len, whole[:kept]))
        if size < len(content):
            with path.open("r+b") as file:
                file.truncate(size)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write a block, each row with its ``index``, and wait until it is on the disk."""
        rows = [{"index": len(self.rows) + offset, **row} for offset, row in enumerate(rows)]
        with self._path.open("ab") as file:
            file.write(lines_of(rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(rows)


def lines_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as lines of JSON."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def check_settings(path: Path, settings: dict[str, Any], *, begun: bool) -> None:
    """Write the settings of a run that begins, or compare them with those of the run that has begun.

    Raises:
        InputError: a setting has another value; the message names it.
    """
    settings = json.loads(json.dumps(settings, default=str))
    if not begun or not path.exists():
        write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    for name in sorted(before.keys() | settings.keys()):
        if before.get(name) != settings.get(name):
            was, now = (f"{values.get(name)!r:.40}" for values in (before, settings))
            raise InputError(
                f"{_flag(name)}: was {was} in the collection that is in {path.parent}, is {now}; use another --output, "
                "or remove that folder"
            )


def _flag(name: str) -> str:
    return name if " " in name else f"--{name.replace('_', '-')}"
