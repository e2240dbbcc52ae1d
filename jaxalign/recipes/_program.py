"""The program of a run: its step, and what lies where. ``fit`` runs it on arrays, ``plan`` compiles it for shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxalign import training
from jaxalign.recipes._config import FitConfig
from jaxalign.recipes._fit_data import count_tokens
from jaxalign.recipes._objective import Objective, Params
from jaxalign.recipes._split import Split

__all__ = ["Program", "make_program"]


@dataclass(frozen=True)
class Program:
    """A step and its arguments' layout."""

    step: training.TrainStep
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], Any]
    extra: dict[str, Any]
    """The train state's ``extra`` before the first update."""
    layout: training.TrainState
    """Of the state."""
    frozen_layout: dict[str, Any]


def make_program(
    objective: Objective,
    split: Split,
    config: FitConfig,
    mesh: Mesh,
    *,
    own: Params,
    reads_reference: bool,
    total_steps: int,
) -> Program:
    """Make the step of a run. Its arrays may be tracers: under ``jax.eval_shape`` nothing is computed.

    Args:
      objective: the method, made for ``split.config``.
      split: the model, divided and laid out.
      config: the run.
      mesh: its devices.
      own: what the reference has of its own beside the frozen parameters; empty where it has nothing.
      reads_reference: whether the step has ``own`` as an argument.
      total_steps: which the learning rate falls over.
    """
    optimizer, schedule = training.make_optimizer(config.optimizer, total_steps)
    # A moving reference takes the parameters' values, so each of its leaves is at least as wide.
    trained = jax.eval_shape(lambda tree: training.cast_parameters(tree, config.parameter_dtype), own or split.start)
    wide = jax.tree.map(
        lambda leaf, held: leaf.astype(jnp.promote_types(leaf.dtype, held.dtype)), own or split.start, trained
    )
    extra = objective.initial_extra(wide)
    layout = training.state_shardings(
        split.trainable, optimizer, mesh=mesh, shardings=split.trainable_layout, extra=extra
    )
    frozen_layout = {"base": split.base_layout, "reference": split.trainable_layout if reads_reference else {}}
    step = training.make_train_step(
        objective.loss,
        optimizer,
        mesh=mesh,
        state_shardings=layout,
        frozen_shardings=frozen_layout,
        accumulation=config.accumulation,
        schedule=schedule,
        update_extra=objective.update_extra,
        count_tokens=count_tokens,
    )
    return Program(step, optimizer, schedule, extra, layout, frozen_layout)
