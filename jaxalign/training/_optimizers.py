"""Optimizers and learning-rate schedules, from one config."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxalign.errors import InputError
from jaxalign.training._dtypes import in_float32, is_norm_or_bias, path_names

Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, with which learning rate."""

    optimizer: Literal["adamw", "rmsprop", "sgd"] = "adamw"
    """The update rule; all three follow torch's formulas."""
    learning_rate: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: the peak for ever, or a linear or cosine fall over the remaining steps."""
    warmup_steps: int = 0
    """Updates of linear warm-up; update k (0-based) has (k + 1) / warmup_steps of the peak."""
    final_fraction: float = 0.0
    """The learning rate at the end of a linear or cosine schedule, as a fraction of the peak."""
    clip_norm: float = 0.0
    """Largest global gradient norm; a larger gradient is scaled down to it. 0 turns it off."""
    weight_decay: float = 0.0
    """Decoupled decay (adamw) or an L2 term in the gradient (rmsprop, sgd); norms and biases have none."""
    beta1: float = 0.9
    """Decay of the first moment (adamw)."""
    beta2: float = 0.999
    """Decay of the second moment (adamw)."""
    decay: float = 0.99
    """Decay of the mean square (rmsprop)."""
    momentum: float = 0.0
    """Momentum (rmsprop, sgd); 0 keeps no buffer."""
    epsilon: float = 1e-8
    """Added to the root of the second moment (adamw, rmsprop)."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the moments and the momentum buffer between updates; bfloat16 is rounded stochastically."""

    def __post_init__(self) -> None:
        for name, valid, allowed in (
            ("learning_rate", self.learning_rate >= 0, "at least 0"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            ("final_fraction", 0 <= self.final_fraction <= 1, "between 0 and 1"),
            ("clip_norm", self.clip_norm >= 0, "at least 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "in [0, 1)"),
            ("beta2", 0 <= self.beta2 < 1, "in [0, 1)"),
            ("decay", 0 <= self.decay < 1, "in [0, 1)"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("epsilon", self.epsilon > 0, "above 0"),
        ):
            if not valid:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")
        # A number that the chosen rule does not read would be believed to act.
        read = {
            "adamw": {"beta1", "beta2", "epsilon"},
            "rmsprop": {"decay", "momentum", "epsilon"},
            "sgd": {"momentum"},
        }
        defaults = {item.name: item.default for item in dataclasses.fields(OptimizerConfig)}
        for name in ("beta1", "beta2", "decay", "momentum", "epsilon"):
            if name not in read.get(self.optimizer, {name}) and getattr(self, name) != defaults[name]:
                raise InputError(f"--{name}: not read by --optimizer {self.optimizer}; leave it out")
        if self.state_dtype != "float32" and self.optimizer == "sgd" and not self.momentum:
            raise InputError("--state-dtype: --optimizer sgd has no state without --momentum; leave it out")
        if self.schedule == "constant" and self.final_fraction:
            raise InputError("--final-fraction: not read by --schedule constant; leave it out")


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """Return the learning rate as a function of the number of updates already applied.

    With w warm-up steps and n total steps, update k has ``peak * min(1, (k + 1) / w)`` while k < w, then
    ``peak * (f + (1 - f) * shape((k - w) / (n - w)))`` with f = ``final_fraction`` and shape 1 (constant), ``1 - t``
    (linear) or ``(1 + cos(pi t)) / 2`` (cosine); past n it stays at the last value.

    Raises:
        InputError: if a number makes no sense.
    """
    if config.schedule not in ("constant", "linear", "cosine"):
        raise InputError(f"--schedule {config.schedule}: expected constant, linear or cosine")
    peak, warmup, final = config.learning_rate, config.warmup_steps, config.final_fraction

    def schedule(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        progress = jnp.clip((count - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        if config.schedule == "linear":
            shape = final + (1 - final) * (1 - progress)
        elif config.schedule == "cosine":
            shape = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            shape = jnp.ones_like(progress)
        return peak * jnp.where(count < warmup, (count + 1) / max(warmup, 1), shape)

    return schedule


def at_update(state: optax.OptState, count: Any) -> optax.OptState:
    """The optimizer's state with its schedule at update ``count``; moments and their bias correction stay."""

    def of_schedule(path: Any, _: Any) -> bool:
        return getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"

    return optax.tree_utils.tree_set(state, of_schedule, count=jnp.asarray(count, jnp.int32))


def decay_mask(params: Any) -> Any:
    """Return a tree of bools like ``params``: True where weight decay acts.

    Norms and biases are known by their names (a path that contains ``norm``, or ends in ``bias`` or ``scale``) and
    vectors by their shape; in a scanned stack a norm has a leading layer axis, so the shape alone would not do.
    """

    def decays(path: Any, leaf: Any) -> bool:
        return not is_norm_or_bias(path_names(path)) and jnp.ndim(leaf) > 1

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, *, mask: Callable[[Any], Any] = decay_mask
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """Return ``(transformation, schedule)``.

    The order is torch's: clip the gradient, add the L2 term, scale, decay, multiply by the learning rate.

    - adamw: ``p -= lr (m^ / (sqrt(v^) + eps) + wd p)``, moments bias-corrected;
    - rmsprop: ``v = d v + (1 - d) g^2``, ``p -= lr g / (sqrt(v) + eps)``, epsilon outside the root; with momentum
      the quotient is accumulated;
    - sgd: ``b = momentum b + g``, ``p -= lr b``.

    The arithmetic is float32 whatever the dtypes of parameters and gradients (float64 stays float64), the state in
    between is ``config.state_dtype``. bfloat16 parameters and state are rounded stochastically; ``update`` then needs
    ``key=``, a typed key that is new in every step (``make_train_step`` gives it).

    Args:
        config: the optimizer's numbers.
        total_steps: length of the run, which linear and cosine schedules fall over.
        mask: params -> tree of bools, where weight decay acts.

    Raises:
        InputError: if a number makes no sense.
    """
    schedule = make_schedule(config, total_steps)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = [optax.add_decayed_weights(config.weight_decay, mask)] if config.weight_decay else []
    momentum = [optax.trace(config.momentum)] if config.momentum else []
    if config.optimizer == "adamw":
        rule = [optax.scale_by_adam(config.beta1, config.beta2, config.epsilon), *decay]
    elif config.optimizer == "rmsprop":
        rule = [*decay, optax.scale_by_rms(config.decay, config.epsilon, eps_in_sqrt=False), *momentum]
    elif config.optimizer == "sgd":
        rule = [*decay, *momentum]
    else:
        raise InputError(f"--optimizer {config.optimizer}: expected adamw, rmsprop or sgd")
    chain = optax.chain(*clip, *rule, optax.scale_by_learning_rate(schedule))
    return in_float32(chain, state_dtype=config.state_dtype), schedule
