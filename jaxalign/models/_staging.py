"""Files that take the place of older ones only when all of them are written."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from jaxalign.errors import InputError

PARTIAL = ".partial"


class Staging:
    """A folder's new files, under temporary names inside it until ``commit``.

    Of several processes the first writes; the others call the same methods, which do nothing there. An error of the
    system (no space, no permission) is kept until ``agree``, so that what all processes do together in between, such as
    gathering parameters, goes on in all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder / PARTIAL
        self._writes = jax.process_index() == 0
        self._error: OSError | None = None
        self._made = self._writes and not folder.exists()
        self.do(self._start)

    def _start(self) -> None:
        if self.partial.is_dir():
            shutil.rmtree(self.partial)  # of a save that was killed
        self.partial.mkdir(parents=True)

    def do(self, action: Callable[[], Any]) -> None:
        """Run an action where files are written, unless one before it failed."""
        if self._writes and self._error is None:
            try:
                action()
            except OSError as error:
                self._error = error

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """One JSON file, as transformers formats its own."""
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        self.do(lambda: (self.partial / name).write_text(text, encoding="utf-8"))

    def stream(self, name: str, parts: Iterable[Callable[[BinaryIO], None]]) -> None:
        """One binary file, part by part; ``parts`` is walked to its end in every process, whatever happens."""
        opened: list[BinaryIO] = []
        self.do(lambda: opened.append((self.partial / name).open("wb")))
        for part in parts:
            self.do(lambda part=part: part(opened[0]))  # type: ignore[misc]
        if opened:
            # To the disk before an older file is replaced; some file systems say only now that there is no space.
            self.do(opened[0].flush)
            self.do(lambda: os.fsync(opened[0].fileno()))
            try:
                opened[0].close()
            except OSError as error:
                self._error = self._error or error

    def agree(self) -> None:
        """All processes learn whether the first failed.

        Raises:
            InputError: it did; what it wrote is gone, and what was in the folder is as it was.
        """
        failed = self._error is not None
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(failed)))
        if failed:
            self.discard()
            error = self._error
            reason = "the first process could not write" if error is None else (error.strerror or str(error))
            named = getattr(error, "filename", None)
            where = f" ({named})" if named is not None and str(named) != str(self.folder) else ""
            raise InputError(f"{self.folder}: not saved: {reason}{where}; what was there is as it was") from error

    def commit(self, last: str, stale: Iterable[str]) -> None:
        """Put the new files in place, the one named ``last`` at the end, then remove the ``stale`` ones.

        Raises:
            InputError: as ``agree``; or the folder changed while the files were put in place.
        """
        self.do(self._check_places)
        self.agree()
        if not self._writes:
            return
        try:
            for path in sorted(self._files(), key=lambda path: path.name == last):
                target = self.folder / path.relative_to(self.partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
            shutil.rmtree(self.partial)
            for name in stale:
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: saved in part only: {error.strerror} ({error.filename})") from error

    def discard(self) -> None:
        """Remove what was written so far."""
        if self._writes:
            shutil.rmtree(self.partial, ignore_errors=True)
            if self._made and self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _files(self) -> list[Path]:
        return [path for path in sorted(self.partial.rglob("*")) if path.is_file()]

    def _check_places(self) -> None:
        for path in self._files():
            target = self.folder / path.relative_to(self.partial)
            if target.is_dir():
                raise IsADirectoryError(21, "a folder stands where a file has to go", str(target))
