"""The sentiment study of ``experiments``, for benchmarks that train on its preferences."""

from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import t as student

from experiments._sentiment import Study
from experiments._sentiment_start import Assets, prepare
from experiments._stages import Stages
from experiments.imdb_sentiment import PRESETS

FOLDER = Path("runs/demo-frontier")
STUDY: Study = PRESETS["glassllm"]


def load(folder: Path) -> Assets:
    """Read the ``glassllm`` study's stages from ``folder``; what is missing is computed and kept there (minutes)."""
    return prepare(STUDY, Stages(folder / "stages", console=Console(stderr=True)))


def over_seeds(values: list[float]) -> tuple[float, float]:
    """The mean of a value a seed, and half its 95 % interval by Student's t."""
    array = np.asarray(values, np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan")
    half = float(student.ppf(0.975, array.size - 1)) * array.std(ddof=1) / np.sqrt(array.size)
    return float(array.mean()), float(half)
