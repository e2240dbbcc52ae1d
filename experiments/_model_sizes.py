"""Models of one family from small to large, and how a score grows along them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from experiments._stages import Report, Stages
from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.evaluation import Interval, student_interval

__all__ = ["count_parameters", "model_of_size", "slope_over_seeds"]

_UNTRAINED = re.compile(r"(\d+)x(\d+)")


def model_of_size(size: str, stages: Stages, seed: int) -> str:
    """A folder or hub id: ``size`` itself, or for "WIDTHxLAYERS" a random model of the packaged family, kept."""
    shape = _UNTRAINED.fullmatch(size)
    if shape is None:
        return size
    width, layers = (int(number) for number in shape.groups())

    def compute(report: Report) -> Any:
        from experiments.assets import glassllm

        return glassllm.untrained(width, layers, seed=seed)

    inputs = {"width": width, "layers": layers, "seed": seed}
    return stages.stage(
        f"untrained-{size}",
        inputs,
        compute,
        lambda folder, found: models.save_pretrained(folder / "model", *found),
        lambda folder: str(folder / "model"),
    )


def count_parameters(params: Any) -> int:
    """Numbers of a model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def slope_over_seeds(sizes: Sequence[int], scores: npt.ArrayLike) -> tuple[Interval, list[float]]:
    """Least-squares slope of the score over ln(parameters), its 95 % interval over items and, at every size, training
    seeds (``student_interval``), and the slope of each seed.

    Args:
      sizes: ``[Z]``, parameters.
      scores: ``[Z, S, N]``, a score of every size, seed and item; items are the same everywhere.

    Raises:
      InputError: fewer than two sizes, or scores of another shape.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 3 or len(sizes) != len(values) or len(set(sizes)) < 2:
        raise InputError(f"a slope needs two sizes and scores of each, has sizes {list(sizes)}, scores {values.shape}")
    logs = np.log(np.asarray(sizes, np.float64))
    weights = (logs - logs.mean()) / np.square(logs - logs.mean()).sum()
    by_item = weights @ values.mean(axis=1)
    parts = [(float(by_item.var(ddof=1)) / len(by_item), len(by_item) - 1)]
    if (seeds := values.shape[1]) > 1:
        spread = weights**2 * values.mean(axis=2).var(axis=1, ddof=1) / seeds
        parts += [(float(variance), seeds - 1) for variance in spread]
    by_seed = weights @ values.mean(axis=2)
    return student_interval(float(by_seed.mean()), parts), by_seed.tolist()
