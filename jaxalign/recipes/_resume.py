"""The checkpoints of a run, and which settings make another run of it."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax

from jaxalign.recipes._config import HOW, UNCHECKED, TrainConfig
from jaxalign.recipes._shared import check_agreement
from jaxalign.training import Checkpoints, Restored, TrainState, about

__all__ = ["OF_A_PROCESS", "open_run"]

logger = logging.getLogger(__name__)

# How a process was started, which says nothing of the run and differs between processes.
OF_A_PROCESS = ("coordinator", "num_processes", "process_id")


def open_run(
    directory: Path, config: TrainConfig, identity: dict[str, Any] | None, like: TrainState, layout: TrainState
) -> tuple[Checkpoints, Restored | None]:
    """The run's checkpoints in ``directory`` and the newest of them; then writes ``config.json``.

    Args:
      directory: the run's folder.
      config, identity: what decides the run's numbers; ``identity`` is what is not in the config (data, weights).
      like, layout: shapes and shardings of its state.

    Raises:
      InputError: what is there is of a run with another config, or the processes of this one have not the same data.
    """
    check_agreement(identity or {})
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in OF_A_PROCESS}
    described = json.loads(json.dumps(values | (identity or {}), default=str))
    may_change = UNCHECKED
    if config.optimizer.schedule != "constant":
        # The schedule falls over the whole run: with another length every update so far would have been another.
        may_change = UNCHECKED - {"max_steps", "epochs"}
    checkpoints = Checkpoints(
        directory / "checkpoints", config=described, keep=config.retention, may_change=tuple(may_change)
    )
    restored = checkpoints.restore(like, layout)
    if jax.process_index() == 0:
        if restored is not None and (changed := _changed(restored.config, described)):
            logger.warning("%s goes on with %s: the same to rounding, not bit for bit", directory, changed)
        path = directory / "config.json"
        with about(path):
            path.write_text(json.dumps(checkpoints.config, indent=2) + "\n", encoding="utf-8")
    return checkpoints, restored


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
