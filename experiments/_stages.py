"""Stages of an experiment whose results are kept: a second run continues, a killed one loses nothing finished.

A stage is a name, the inputs that decide its result, and a function. Its result lies in ``ROOT/NAME-HASH/``, where
HASH is that of the inputs: other inputs are another folder, so nothing stale is ever read. The folder is written under
another name and renamed when it is complete; a folder that exists is therefore finished. Results are npz, JSON, JSON
lines or safetensors, never pickle. What a stage returns is always what was read back from its folder: the run that
computed it and every later one see the same values.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxalign.errors import InputError

__all__ = ["ARRAYS", "JSON", "JSON_LINES", "TREE", "Codec", "Report", "Stages", "digest"]

_SEAL = "stage.json"
_PLAIN_SECONDS = 10.0  # between progress lines where the output is no terminal
T = TypeVar("T")


class Report(Protocol):
    """How a running stage tells how far it is: ``report(done, total, note)``."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


class Codec(NamedTuple):
    """How a result is written into a stage's folder and read back; give it to ``Stages.stage`` as ``*CODEC``."""

    save: Callable[[Path, Any], None]
    load: Callable[[Path], Any]


def digest(*parts: object) -> str:
    """A content hash of JSON-able values, texts and arrays, for the inputs of a stage: 16 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"array {part.dtype.str} {part.shape}".encode())
            state.update(np.ascontiguousarray(part).tobytes())
        else:
            state.update(b"json " + json.dumps(part, sort_keys=True, ensure_ascii=True).encode())
        state.update(b"\0")
    return state.hexdigest()[:16]


class Stages:
    """The finished stages under ``root``; ``total`` is how many this run goes through, for its progress display."""

    def __init__(self, root: Path | str, *, total: int | None = None, console: Console | None = None) -> None:
        self.root = Path(root)
        self.total = total
        self.console = console or Console()
        self.count = 0
        self.seconds = 0.0
        """Of the stages so far, whenever they ran."""
        self.took: dict[str, float] = {}
        """The same by their names."""
        self.started = time.monotonic()

    def folder(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """Where the result of this stage lies or will lie."""
        try:
            return self.root / f"{name}-{digest(name, dict(inputs))}"
        except TypeError as error:
            raise InputError(f"stage {name}: its inputs are not JSON ({error})") from error

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Report], T],
        save: Callable[[Path, T], None],
        load: Callable[[Path], T],
    ) -> T:
        """Read this stage's result, or compute and keep it.

        ``inputs`` hold everything that decides the result (put a ``digest`` of what is large). ``compute`` gets a
        ``Report`` to call as it goes. An exception in ``compute`` or ``save`` leaves no trace in ``root``.
        """
        self.count += 1
        folder = self.folder(name, inputs)
        title = f"[{self.count}{'/' + str(self.total) if self.total else ''}] {name}"
        if (folder / _SEAL).is_file():
            self.console.print(f"{title}: kept from an earlier run", highlight=False, markup=False)
            self._took(name, float(json.loads((folder / _SEAL).read_text(encoding="utf-8"))["seconds"]))
            return load(folder)
        started = time.monotonic()
        with _progress(self.console, title) as report:
            result = compute(report)
        seconds = round(time.monotonic() - started, 3)
        self._took(name, seconds)
        self._keep(folder, name, inputs, lambda temporary: save(temporary, result), seconds)
        elapsed = _clock(time.monotonic() - self.started)
        self.console.print(f"{title}: done in {_clock(seconds)} ({elapsed} in all)", highlight=False, markup=False)
        return load(folder)

    def trained(
        self,
        name: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Report, Path], T],
        save: Callable[[Path, T], None],
        load: Callable[[Path], T],
    ) -> T:
        """A ``stage`` that trains; ``compute`` also gets a folder for what a run that is killed goes on from.

        It is named as the stage's own, in ``runs`` beside ``root``, and removed once the stage is kept.
        The seconds of a stage that was killed and gone on with are those of the process that ended it.
        """
        folder = self.root.parent / "runs" / self.folder(name, inputs).name
        found = self.stage(name, inputs, lambda report: compute(report, folder), save, load)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    def _took(self, name: str, seconds: float) -> None:
        self.seconds += seconds
        self.took[name] = seconds

    def _keep(
        self, folder: Path, name: str, inputs: Mapping[str, Any], save: Callable[[Path], None], seconds: float
    ) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=self.root))
        try:
            save(temporary)
            seal = {"stage": name, "inputs": dict(inputs), "seconds": seconds}
            (temporary / _SEAL).write_text(json.dumps(seal, indent=1) + "\n", encoding="utf-8")
            temporary.chmod(0o755)
            try:
                os.replace(temporary, folder)
            except OSError:
                if not (folder / _SEAL).is_file():  # otherwise another process finished the same stage first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _progress(console: Console, title: str) -> Iterator[Report]:
    """A live bar with elapsed time and time left on a terminal, a plain line now and then elsewhere."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
        return
    console.print(f"{title}: running", highlight=False, markup=False)
    started = last = time.monotonic()

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PLAIN_SECONDS or not done:
            return
        last = now
        left = (now - started) / done * (total - done)
        noted = f"{done}/{total} ({note})" if note else f"{done}/{total}"
        line = f"{title}: {noted}, {_clock(now - started)} elapsed, {_clock(left)} left"
        console.print(line, highlight=False, markup=False)

    yield report


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _save_arrays(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)


def _load_arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _save_json(folder: Path, value: Any) -> None:
    (folder / "value.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _load_json(folder: Path) -> Any:
    return json.loads((folder / "value.json").read_text(encoding="utf-8"))


def _save_json_lines(folder: Path, rows: list[Any]) -> None:
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _load_json_lines(folder: Path) -> list[Any]:
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _save_tree(folder: Path, tree: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    flat: dict[str, np.ndarray] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                walk(f"{prefix}/{key}" if prefix else str(key), child)
        else:
            flat[prefix] = np.ascontiguousarray(node)

    walk("", tree)
    save_file(flat, folder / "tree.safetensors")


def _load_tree(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    tree: dict[str, Any] = {}
    for name, array in load_file(folder / "tree.safetensors").items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree


ARRAYS = Codec(_save_arrays, _load_arrays)
"""A flat dict of numpy arrays."""
JSON = Codec(_save_json, _load_json)
"""Any JSON value."""
JSON_LINES = Codec(_save_json_lines, _load_json_lines)
"""A list of JSON values, one a line."""
TREE = Codec(_save_tree, _load_tree)
"""A nested dict of arrays, such as the parameters of a model (bfloat16 too)."""
