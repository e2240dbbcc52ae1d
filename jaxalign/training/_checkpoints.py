"""Checkpoints: the state, the data position, the config and the metrics, saved together and restored bit for bit."""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from jaxalign import sharding
from jaxalign.errors import InputError
from jaxalign.training._errors import CheckpointError
from jaxalign.training._fingerprint import fingerprint
from jaxalign.training._flags import MAY_CHANGE, check_config
from jaxalign.training._place import Place
from jaxalign.training._reads import ending_together
from jaxalign.training._retention import Retention
from jaxalign.training._state import TrainState
from jaxalign.training._together import DamagedError, line, read_together

logger = logging.getLogger(__name__)

# Seconds in which a network file system may still list under its old name what another host has renamed.
PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        state: the state, on the devices.
        step: number of updates applied.
        position: number of batches consumed: the next batch of the data.
        config: the config it was saved with.
        metrics: the metrics of its step.
        evaluation_due: whether a signal came before the evaluation of this step was made.
    """

    state: TrainState
    step: int
    position: int
    config: dict[str, Any]
    metrics: dict[str, float]
    evaluation_due: bool = False


class Checkpoints:
    """The checkpoints of one run, in one folder: saved in the background, each complete or absent.

    A save copies the arrays and returns; the files are written meanwhile, under another name until they are complete,
    so that a killed process leaves no half checkpoint. Each one carries checksums of its arrays, computed on the
    devices, and one of everything else in it; restoring verifies them. A save that fails is heard at the next call.

    Args:
        directory: the folder, made if missing.
        config: the run's config as nested JSON values; a resumed run must have the same.
        keep: how many of the newest stay; or a ``Retention``, which may keep others too. What is not kept is deleted.
        may_change: names of config entries that may differ on resume.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        keep: int | Retention = 2,
        may_change: tuple[str, ...] = MAY_CHANGE,
    ) -> None:
        import orbax.checkpoint as ocp

        self.directory = Path(directory).absolute()
        self.config = json.loads(json.dumps(config or {}))
        self.may_change = may_change
        self.retention = Retention(keep) if isinstance(keep, int) else keep
        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self.retention.policy(), create=True, cleanup_tmp_directories=True
        )
        logging.getLogger("absl").addFilter(_not_raised)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._place = Place(self.directory)
        self._saving = 0
        self._failed = False
        self.retention.read(self.directory, self.steps())

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        position: int,
        metrics: Mapping[str, float] | None = None,
        evaluation_due: bool = False,
    ) -> None:
        """Start saving; waits for an earlier save that still runs. Does nothing if this step is already saved.

        Args:
            step: number of updates applied.
            state: the state; it may be donated as soon as this returns.
            position: number of batches consumed.
            metrics: the metrics of this step.
            evaluation_due: whether an evaluation at this step is left to the run that continues.

        Raises:
            CheckpointError: this save, or the one before it, which was written meanwhile, failed.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        notes: dict[str, Any] = {
            "data": {"position": position, "evaluation_due": evaluation_due},
            "config": self.config,
            "metrics": dict(metrics or {}),
            "kinds": _kinds(state),
            "checksums": fingerprint(state),
        }
        args = self._ocp.args
        items = args.Composite(state=args.StandardSave(state), notes=args.JsonSave({**notes, "sha256": _digest(notes)}))
        self._saving = step
        self.retention.offer(step, notes["metrics"])
        try:
            # Orbax would make it anew, perhaps on another disk than the one that went away; if it went while a save
            # began, Orbax has.
            if not self._place.is_there():
                raise FileNotFoundError("the folder is gone")
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, like: TrainState, shardings: TrainState) -> Restored | None:
        """Return the newest checkpoint that is whole, or None if there is none at all.

        A damaged one is skipped with a warning, and set aside (renamed) once an older one has been read. On several
        processes one that any of them finds damaged is damaged for all.

        Args:
            like: a state with the right shapes and dtypes: arrays, or ``jax.ShapeDtypeStruct`` (``state_shapes``),
                which needs no memory.
            shardings: where to put it, on any mesh (``state_shardings``).

        Raises:
            InputError: if the config differs in an entry that may not change, an array has another shape or dtype, or
                no checkpoint can be read.
        """
        self._manager.wait_until_finished()
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like, shardings
        )
        damaged: dict[int, str] = {}
        renames: dict[int, int] = {}
        with contextlib.closing(self._reader()) as reader, ending_together():
            for step, process in self._seen().items():
                try:
                    restored = self._read(reader, step, target)
                except DamagedError as error:
                    damaged[step], renames[step] = str(error), process
                    if jax.process_index() == 0:
                        logger.warning(
                            "%s: checkpoint %d is damaged, trying the one before: %s", self.directory, step, error
                        )
                    continue
                self._set_aside(renames)
                return restored
        if damaged:
            raise InputError(
                f"{self.directory}: no checkpoint can be read ({', '.join(map(str, sorted(damaged)))}); "
                f"the newest: {damaged[max(damaged)]}"
            )
        return None

    def _reader(self) -> Any:
        """Orbax without its barriers: a process reads what it needs, and can fail, by itself."""
        own = jax.process_index()
        alone = self._ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        options = self._ocp.CheckpointManagerOptions(
            create=False, enable_async_checkpointing=False, multiprocessing_options=alone
        )
        return self._ocp.CheckpointManager(self.directory, options=options)

    def _seen(self) -> dict[int, int]:
        """Return ``{step: the first process that sees its checkpoint}``, newest first."""
        seen = enumerate(sharding.exchange(" ".join(map(str, self.steps()))))
        first: dict[int, int] = {}
        for process, steps in seen:
            for step in steps.split():
                first.setdefault(int(step), process)
        return dict(sorted(first.items(), reverse=True))

    def _read(self, reader: Any, step: int, target: TrainState) -> Restored:
        args = self._ocp.args

        def read_notes() -> dict[str, Any]:
            notes: dict[str, Any] = reader.restore(step, args=args.Composite(notes=args.JsonRestore())).notes
            # First of all: a flipped bit in a config would read as a changed flag, one in a position as other data.
            if notes.pop("sha256") != _digest(notes):
                raise OSError("the checksum of its config, metrics and data position does not match")
            check_config(notes["config"], self.config, may_change=self.may_change, where=str(self.directory))
            kinds, wanted = notes["kinds"], _kinds(target)
            for name in sorted(kinds.keys() | wanted.keys()):
                if kinds.get(name) != wanted.get(name):
                    raise InputError(
                        f"{self.directory}: {name} is {wanted.get(name, 'absent')} now, and "
                        f"{kinds.get(name, 'absent')} in checkpoint {step}: another model or optimizer; give another "
                        "--output-dir"
                    )
            return notes

        def read_state() -> TrainState:
            state: TrainState = reader.restore(step, args=args.Composite(state=args.StandardRestore(target))).state
            return state

        notes, state = read_together(read_notes), read_together(read_state)
        found = fingerprint(state)

        def verify() -> None:  # of what all processes have, each may have read another copy
            if wrong := [name for name in found if found[name] != notes["checksums"].get(name)]:
                raise OSError(f"the checksum of {wrong[0]} does not match")

        read_together(verify)
        data = notes["data"]
        return Restored(state, step, data["position"], notes["config"], notes["metrics"], data["evaluation_due"])

    def _set_aside(self, steps: Mapping[int, int]) -> None:
        """Rename the checkpoints of these steps, each by the process it is given with."""
        if not steps:
            return
        for step, process in steps.items():
            if jax.process_index() == process:
                again = (f"damaged-{step}-{number}" for number in itertools.count(2))
                names = itertools.chain([f"damaged-{step}"], again)
                free = next(name for name in names if not (self.directory / name).exists())
                (self.directory / str(step)).rename(self.directory / free)
        sharding.exchange("")  # the others wait for it
        self._manager.reload()
        end = time.monotonic() + PATIENCE
        while not steps.keys().isdisjoint(self.steps()) and time.monotonic() < end:
            time.sleep(0.2)
            self._manager.reload()

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            CheckpointError: it failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Wait, and release the threads; a failure that has been raised already is not raised again."""
        with contextlib.closing(self._place):
            if not self._failed:
                self.wait()
            try:
                self._manager.close()
            except Exception:
                if not self._failed:
                    raise

    def _failure(self, error: Exception) -> CheckpointError:
        self._failed = True
        whole = [int(path.name) for path in self.directory.glob("[0-9]*") if path.name.isdigit()]
        rest = "" if not self.directory.is_dir() else "; there is none before it"
        if whole:
            rest = f"; the newest whole one is of step {max(whole)}: the same command continues from there"
        return CheckpointError(
            f"{self.directory}: the checkpoint of step {self._saving} could not be saved: {_cause(error)}{rest}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _not_raised(record: logging.LogRecord) -> bool:
    """Whether a record of Orbax's says more than an exception that is raised too: not a second time, with traceback."""
    return record.exc_info is None or "orbax" not in record.pathname


def _kinds(tree: Any) -> dict[str, str]:
    """Return ``{path: "float32[8, 24]"}``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _digest(notes: Mapping[str, Any]) -> str:
    """Of everything in a checkpoint that is no array; of its JSON, so that it is the same when read back."""
    return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()


def _cause(error: BaseException) -> str:
    """Why a file could not be written, in the system's words where they can be found in what a writer raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return f"{seen.strerror} ({seen.filename})" if seen.filename else seen.strerror
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOENT, errno.EIO):
            if os.strerror(code) in str(seen):
                return os.strerror(code)
        seen = seen.__cause__ or seen.__context__
    return line(error)
