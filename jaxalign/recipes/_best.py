"""The best model so far, by a value that is evaluated while a run trains; it survives an interruption."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import training
from jaxalign.errors import InputError
from jaxalign.training import TrainState

__all__ = ["Best"]

NAMES = ("best", "best_value", "best_step")


class Best:
    """Parameters of the evaluation with the highest value; the first of equals."""

    def __init__(self) -> None:
        self.params: Any = None
        self.value = -np.inf
        self.step = -1

    def offer(self, step: int, values: Mapping[str, float], name: str, state: TrainState) -> None:
        """Keep a copy of the state's parameters if ``values[name]`` is the highest so far.

        Raises:
          InputError: there is no value of that name.
        """
        if name not in values:
            raise InputError(f"keep_best: {name!r} is not evaluated; there are {', '.join(sorted(values)) or 'none'}")
        # Held to what a checkpoint can hold, so that a run that continues compares the same numbers.
        value = float(np.float32(values[name]))
        if value > self.value:
            self.params, self.value, self.step = training.copy_tree(state.params), value, step

    def saved(self, state: TrainState) -> TrainState:
        """The state as a checkpoint holds it: with the best parameters; of shapes or shardings, with theirs."""
        params, value, step = self.params, jnp.float32(self.value), jnp.int32(self.step)
        if isinstance(state.step, jax.ShapeDtypeStruct):
            value, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        elif isinstance(state.step, jax.sharding.Sharding):
            value = step = state.step
        else:
            value, step = (jax.device_put(scalar, state.step.sharding) for scalar in (value, step))
        if params is None:
            params = state.params
        return dataclasses.replace(state, extra={**state.extra, "best": params, "best_value": value, "best_step": step})

    def restore(self, state: TrainState) -> TrainState:
        """Take the best out of what a checkpoint held; the state that is left is the one that trains."""
        extra = dict(state.extra)
        best, value, step = (extra.pop(name) for name in NAMES)
        if int(step) >= 0:
            self.params, self.value, self.step = best, float(value), int(step)
        return dataclasses.replace(state, extra=extra)
