"""Which checkpoints stay: the newest, those of round steps, and the best."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

logger = logging.getLogger(__name__)


def lowest_is_best(name: str) -> bool:
    """Whether a metric is the better the lower it is: a loss (``loss``, ``eval/loss``, ``eval/loss/policy``)."""
    return "loss" in name.split("/")


class Retention:
    """A checkpoint stays if any of these wants it; the others go when the next save is complete.

    Args:
        newest: the last N.
        every: steps that are multiples of it, for ever.
        best: name of a metric: the one checkpoint at which it was best, the first of equals; checkpoints without the
            metric do not compete.

    Raises:
        InputError: fewer than one newest.
    """

    def __init__(self, newest: int = 2, every: int | None = None, best: str | None = None) -> None:
        if newest < 1:
            raise InputError(f"--keep-checkpoints {newest}: at least one checkpoint must stay")
        self.newest, self.every, self.best = newest, every, best
        self._values: dict[int, float] = {}
        self._seen = False

    def policy(self) -> Any:
        """The same as Orbax takes it."""
        from orbax.checkpoint import checkpoint_managers as managers

        policies: list[Any] = [managers.LatestN(self.newest)]
        if self.every is not None:
            policies.append(managers.EveryNSteps(self.every))
        if self.best is not None:
            policies.append(self)
        return managers.AnyPreservationPolicy(policies)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's protocol, for the best one: Orbax's own reads metrics of all that is there, damaged or not."""
        del context
        known = {info.step: self._values[info.step] for info in checkpoints if info.step in self._values}
        best = max(known, key=lambda step: (known[step], -step), default=None)
        return [info.step == best for info in checkpoints]

    def offer(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note how good the checkpoint of this step is."""
        value = metrics.get(self.best) if self.best is not None else None
        if isinstance(value, int | float) and math.isfinite(value):
            self._values[step] = -value if lowest_is_best(str(self.best)) else value

    def read(self, directory: Path, steps: Sequence[int]) -> None:
        """Note how good the checkpoints are that are there already; one that cannot be read does not compete."""
        if self.best is None:
            return
        for step in steps:
            path = directory / str(step) / "notes" / "metadata"
            try:
                self.offer(step, json.loads(path.read_bytes())["metrics"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s: not counted for --keep-best-by: %s", path, error)

    def check(self, values: Mapping[str, float]) -> None:
        """Refuse a name that is not among these metrics; evaluated ones (``eval/...``) are looked up among evaluated.

        Raises:
            InputError: it names those that are there.
        """
        self._seen = self._seen or self.best in values
        if self.best is None or self._seen:  # a step may lack a metric that others have
            return
        evaluated = any(name.startswith("eval/") for name in values)
        if values and self.best.startswith("eval/") == evaluated:
            raise InputError(f"--keep-best-by {self.best}: there is no such metric; there are {', '.join(values)}")
