"""The sentiment study of ``experiments``, for benchmarks that train on its preferences."""

from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import t as student

from experiments._sentiment import Study
from experiments._sentiment_rlhf import RLHF
from experiments._sentiment_start import Assets, prepare
from experiments._stages import Stages

FOLDER = Path("runs/sentiment-study")
# Larger than the experiment's "mini": what these benchmarks compare shows on a reward model of enough pairs.
STUDY = Study(
    model="glassllm",
    prompts=1024,
    held_out_samples=4,
    max_new_tokens=48,
    sampling_batch=256,
    sft_steps=300,
    rlhf=RLHF(targets=(6.0,), reward_extra_prompts=1100),
)


def load(folder: Path) -> Assets:
    """Read the study's stages from ``folder``; what is missing is computed and kept there (minutes)."""
    return prepare(STUDY, Stages(folder / "stages", console=Console(stderr=True)))


def over_seeds(values: list[float]) -> tuple[float, float]:
    """The mean of a value a seed, and half its 95 % interval by Student's t."""
    array = np.asarray(values, np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan")
    half = float(student.ppf(0.975, array.size - 1)) * array.std(ddof=1) / np.sqrt(array.size)
    return float(array.mean()), float(half)
