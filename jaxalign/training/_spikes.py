"""A loss that jumps out of what the run has shown so far ends it, with the records that it met."""

import collections
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

import jax

from jaxalign import sharding
from jaxalign.training._metrics import read_rows

WINDOW = 64
"""Losses that a new one is held against."""
LEAST = 16
"""Before so many there is nothing to compare with."""
SMALLEST = 0.01
"""A deviation counts as at least this share of the median: a run that has converged is no spike at every step."""


class LossSpikes:
    """Whether a loss is further above the median of the last ``WINDOW`` than ``threshold`` deviations.

        loss > median + threshold * 1.4826 * median |loss_i - median|

    Median and median deviation (1.4826 makes it a normal distribution's standard deviation), because one outlier in the
    window moves a mean and widens a standard deviation, so that the second spike would pass.

    Args:
        threshold: deviations.
        history: the losses of the run so far, so that a run that continues decides as the unbroken one.
    """

    def __init__(self, threshold: float, history: Iterable[float] = ()) -> None:
        self.threshold = threshold
        self._losses: collections.deque[float] = collections.deque(history, maxlen=WINDOW)

    def check(self, loss: float) -> str | None:
        """What is wrong with this loss, or None; then it belongs to the history."""
        found = None
        if len(self._losses) >= LEAST:
            median = statistics.median(self._losses)
            deviation = 1.4826 * statistics.median(abs(past - median) for past in self._losses)
            deviation = max(deviation, SMALLEST * abs(median))
            if loss > median + self.threshold * deviation:
                above = f"{(loss - median) / deviation:.1f} deviations" if deviation else "any deviation"
                found = (
                    f"the loss {loss:.4g} is {above} above the median {median:.4g} of the last {len(self._losses)} "
                    f"steps (--loss-spike {self.threshold:g})"
                )
        self._losses.append(loss)
        return found


def read_losses(path: Path, step: int) -> list[float]:
    """The losses of a run's metrics.jsonl up to this step, for ``LossSpikes``, as :func:`read_rows` has its rows.

    As process 0 reads them, which writes the file; in a run of several processes all must call this.
    """
    if step == 0:
        return []
    rows = read_rows(path) if jax.process_index() == 0 else []
    losses = [row["loss"] for row in rows if row["step"] <= step and isinstance(row.get("loss"), float)]
    own = [loss for loss in losses[-WINDOW:] if math.isfinite(loss)]
    shared: list[float] = json.loads(sharding.exchange(json.dumps(own))[0])
    return shared
