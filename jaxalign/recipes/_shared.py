"""What the processes of one run share and agree on."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign import sharding, training
from jaxalign.errors import InputError
from jaxalign.recipes._config import TrainConfig

__all__ = ["check_agreement", "check_folder", "check_shared", "on_first_process", "run_mesh", "say"]

# Seconds in which a file that one host has written must be seen by the others; network file systems keep lists of what
# is not there for a while.
PATIENCE = 60.0
# Bytes of an error that the other processes are told.
LONGEST = 2000


def on_first_process(compute: Callable[[], np.ndarray], count: int) -> np.ndarray:
    """``compute()`` as the first process has it, on all of them; the others do not call it.

    For what must be done once (a rating that costs money, or is drawn) and be the same everywhere.

    Args:
        compute: makes float32 ``[count]``.
        count: how many numbers.

    Raises:
        Exception: what ``compute`` raised, and on the other processes an InputError of the same text.
    """
    if jax.process_count() == 1:
        return compute()
    from jax.experimental import multihost_utils

    found, text, raised = np.zeros(count, np.float32), b"", None
    if jax.process_index() == 0:
        try:
            found = np.asarray(compute(), np.float32)
        except Exception as error:
            raised, text = error, (str(error) or type(error).__name__).encode()[:LONGEST]
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    if length:
        told = np.asarray(multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(length), np.uint8)))
        raise raised or InputError(told.tobytes().decode(errors="replace"))
    return np.asarray(multihost_utils.broadcast_one_to_all(found))


def say(line: str) -> None:
    """A line on standard error, from one process."""
    if jax.process_index() == 0:
        from rich.console import Console

        Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def check_agreement(values: Mapping[str, Any]) -> None:
    """Make sure that every process was given the same values: flags, by their names, and data by theirs.

    Args:
        values: nested; what is no JSON is compared as its text.

    Raises:
        InputError: one was not; names the first value that differs, the first process that has another, and of a flag
            both values.
    """
    first, *others = (json.loads(text) for text in sharding.exchange(json.dumps(values, default=str)))
    for process, other in enumerate(others, start=1):
        for name, (wanted, given) in training.differences(first, other).items():
            both = "another than process 0" if " " in name else f"{json.dumps(given)}, process 0 {json.dumps(wanted)}"
            raise InputError(
                f"{training.as_flag(name)}: process {process} was given {both}; all processes must have the same"
            )


def check_folder(folder: Path) -> None:
    """Refuse a file where a run's folder is to be, before anything is read; raises ``InputError``."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"--output-dir: {place} is a file, not a folder")


def check_shared(folder: Path) -> None:
    """Make sure that all processes see the files that the first one writes into ``folder``; makes it if missing.

    Raises:
        InputError: the first cannot write there, or another sees something else under that name.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token = int.from_bytes(np.random.default_rng().bytes(4), "big")
    token = int(multihost_utils.broadcast_one_to_all(np.uint32(token)))
    marker = folder / f".shared-{token:08x}"
    try:
        on_first_process(lambda: _write(marker), 1)
        here = _appears(marker)
        seen = np.asarray(multihost_utils.process_allgather(np.asarray(here)))
    finally:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                marker.unlink(missing_ok=True)
    if not seen.all():
        blind = ", ".join(map(str, np.flatnonzero(~seen)))
        raise InputError(
            f"--output-dir {folder}: process {blind} does not see what process 0 writes there; the folder must be on a "
            "file system that all hosts share (docs/pods.md)"
        )


def run_mesh(config: TrainConfig) -> Mesh:
    """The mesh of a run's devices.

    Raises:
        InputError: there is no such mesh, or ``config.attention`` names a kernel that cannot attend to rows as it
            splits them; the kernel itself says so only once the model is loaded.
    """
    mesh = sharding.parse_mesh(config.mesh)
    split = sharding.length_shards(mesh) > 1
    if split and config.attention in ("cudnn", "splash"):
        raise InputError(
            f"--attention {config.attention}: --mesh {config.mesh} splits rows of tokens; there ring attends"
        )
    if not split and config.attention == "ring":
        raise InputError("--attention ring: rows of tokens are whole without --mesh sequence=N")
    return mesh


def _write(marker: Path) -> np.ndarray:
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise InputError(f"--output-dir {marker.parent}: {error.strerror}") from error
    return np.zeros(1, np.float32)


def _appears(marker: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not marker.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
