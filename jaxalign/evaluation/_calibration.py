"""Calibration of a preference model: how often it is right when it says how sure it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxalign.errors import InputError
from jaxalign.evaluation._plot import STYLE, load_matplotlib
from jaxalign.evaluation._wilson import wilson_interval

__all__ = ["Calibration", "CalibrationBin", "calibration", "plot_calibration"]


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs about which the model was about equally sure."""

    predicted: float
    """Mean probability it gave to the answer it preferred."""
    observed: float
    """Share of them in which that answer was the chosen one."""
    low: float
    """Lower end of Wilson's 95 % interval of ``observed``, pairs taken as independent."""
    high: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """What a preference model knows of pairs that it was not trained on."""

    accuracy: float
    """Share of pairs whose chosen answer has the higher reward; equal rewards count one half."""
    low: float
    """Lower end of Wilson's 95 % interval of ``accuracy``, pairs taken as independent."""
    high: float
    pairs: int
    mean_margin: float
    """Mean of r_w - r_l."""
    log_loss: float
    """Mean of -log sigmoid(r_w - r_l), nats; ln 2 knows nothing."""
    expected_calibration_error: float
    """Mean over pairs of |observed - predicted| of their bin."""
    bins: tuple[CalibrationBin, ...]


def calibration(margins: npt.ArrayLike, *, bins: int = 10) -> Calibration:
    """Accuracy and calibration from the reward margins of held-out pairs.

    The model's probability that the answer it prefers is the chosen one is sigmoid(|r_w - r_l|), in [1/2, 1]; pairs are
    put into ``bins`` intervals of equal width of it, empty ones left out.

    Args:
        margins: ``[n]``, r_w - r_l of every pair.
        bins: number of intervals.

    Raises:
        InputError: no pairs, a margin that is not finite, fewer than one bin.
    """
    values = np.asarray(margins, np.float64).reshape(-1)
    if not values.size or not np.isfinite(values).all():
        raise InputError(f"calibration: needs finite margins, at least one (of {values.size})")
    if bins < 1:
        raise InputError(f"calibration: bins is {bins}, must be at least 1")
    right = np.where(values == 0, 0.5, values > 0)
    sure = 1 / (1 + np.exp(-np.abs(values)))
    place = np.minimum((2 * (sure - 0.5) * bins).astype(int), bins - 1)
    found = []
    for index in range(bins):
        inside = place == index
        if inside.any():
            count, observed = int(inside.sum()), float(right[inside].mean())
            ends = wilson_interval(observed, count)
            found.append(CalibrationBin(float(sure[inside].mean()), observed, ends.low, ends.high, count))
    error = sum(part.count * abs(part.observed - part.predicted) for part in found) / values.size
    accuracy = wilson_interval(float(right.mean()), values.size)
    return Calibration(
        accuracy.estimate,
        accuracy.low,
        accuracy.high,
        values.size,
        float(values.mean()),
        float(np.logaddexp(0, -values).mean()),
        float(error),
        tuple(found),
    )


def plot_calibration(found: Calibration, *, title: str = "") -> Any:
    """Observed frequency against predicted probability, with 95 % intervals. Needs matplotlib (the ``eval`` extra)."""
    matplotlib = load_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(4.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0.5, 1], [0.5, 1], color="0.6", linewidth=0.8, zorder=0)
        x, y = [part.predicted for part in found.bins], [part.observed for part in found.bins]
        down = [part.observed - part.low for part in found.bins]
        up = [part.high - part.observed for part in found.bins]
        axes.errorbar(x, y, yerr=(down, up), fmt="o-", markersize=4, linewidth=1.2, elinewidth=0.7, color="#0072B2")
        axes.set_xlabel("predicted probability of the answer preferred")
        axes.set_ylabel("observed frequency")
        axes.set_title(title or f"accuracy {found.accuracy:.3f} on {found.pairs} pairs")
    return figure
