"""The checkpoints of a run, and which settings make another run of it."""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.recipes._config import HOW, UNCHECKED, TrainConfig
from jaxalign.recipes._shared import check_agreement, on_first_process
from jaxalign.training import Checkpoints, Restored, TrainState, about, read_rows, watched

__all__ = ["OF_A_PROCESS", "open_run"]

logger = logging.getLogger(__name__)

# How a process was started, which says nothing of the run and differs between processes.
OF_A_PROCESS = ("coordinator", "num_processes", "process_id")


def open_run(
    directory: Path, config: TrainConfig, identity: dict[str, Any] | None, like: TrainState, layout: TrainState
) -> tuple[Checkpoints, Restored | None]:
    """The run's checkpoints in ``directory`` and the newest of them; then writes ``config.json``.

    Where there is none the run begins again, and the metrics of the one before are removed.

    Args:
      directory: the run's folder.
      config, identity: what decides the run's numbers; ``identity`` is what is not in the config (data, weights).
      like, layout: shapes and shardings of its state.

    Raises:
      InputError: what is there is of a run with another config, or of one whose checkpoints are lost, or the processes
        of this one have not the same data.
    """
    check_agreement(identity or {})
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in OF_A_PROCESS}
    described = json.loads(json.dumps(values | (identity or {}), default=str))
    may_change = UNCHECKED
    if config.optimizer.schedule != "constant":
        # The schedule falls over the whole run: with another length every update so far would have been another.
        may_change = UNCHECKED - {"max_steps", "epochs"}
    with watched(config.limits, f"the newest checkpoint in {directory} to be read"):
        on_first_process(lambda: _check_not_lost(directory), 1)
        checkpoints = Checkpoints(
            directory / "checkpoints", config=described, keep=config.retention, may_change=tuple(may_change)
        )
        restored = checkpoints.restore(like, layout)
    if jax.process_index() == 0:
        if restored is not None and (changed := _changed(restored.config, described)):
            logger.warning("%s goes on with %s: the same to rounding, not bit for bit", directory, changed)
        path, metrics = directory / "config.json", directory / "metrics.jsonl"
        if restored is None:
            # First: metrics beside another run's save_every would look as if checkpoints had been lost.
            with about(metrics):
                metrics.unlink(missing_ok=True)
        with about(path):
            path.write_text(json.dumps(checkpoints.config, indent=2) + "\n", encoding="utf-8")
    return checkpoints, restored


def _check_not_lost(directory: Path) -> np.ndarray:
    """Refuse to begin again over the results of a run whose checkpoints are gone. One killed before its first has none.

    A save waits for the one before it: so a run that has no checkpoint yet has come no further than to its second save.
    """
    folder, nothing = directory / "checkpoints", np.zeros(1, np.float32)
    # Also one that is damaged: what can be made of it is said when it is read.
    if folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir()):
        return nothing
    done = max((row["step"] for row in read_rows(directory / "metrics.jsonl")), default=0)
    first = 2 * _save_every(directory / "config.json") if folder.is_dir() else 0
    final = (directory / "final").exists()
    if done <= first and not final:
        return nothing
    what = "a final model" if final else f"the metrics of {done} steps"
    raise InputError(
        f"{directory}: holds {what} but no checkpoint to go on from, and would be overwritten: bring {folder} back, "
        "give another --output-dir, or remove final and metrics.jsonl to begin again"
    )


def _save_every(path: Path) -> int:
    """How often the run that wrote this config saved; 0 where it wrote none that is whole."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return int(json.loads(path.read_text(encoding="utf-8"))["save_every"])
    return 0


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The flags of how a step is computed that are others than before, such as "--remat full (it was none)"."""
    return ", ".join(
        f"--{name.replace('_', '-')} {_shown(now.get(name))} (it was {_shown(before.get(name))})"
        for name in sorted(HOW)
        if before.get(name) != now.get(name)
    )


def _shown(value: Any) -> str:
    """As one gives it to a flag."""
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown or "not given"
