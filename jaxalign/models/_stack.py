"""A stack of layers as a scan over its stacked parameters, whatever pattern of windows they alternate in."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.models._attention import View
from jaxalign.models._block import Block
from jaxalign.models._config import ModelConfig
from jaxalign.models._mesh import constrain_tokens
from jaxalign.models._project import PRODUCT


def run_stack(
    config: ModelConfig,
    stack: Any,
    hidden: jax.Array,
    seen: dict[int | None, View],
    *,
    start: int,
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """The layers of one stack, rematerialised by ``config.remat``.

    Layers that alternate are scanned a period at a time, then the tail; the parameters stay one leaf ``[layers, ...]``,
    so a stack may be cut anywhere.

    Args:
        config: the model.
        stack: the stack's parameters, layers first.
        hidden: ``[B, T, D]``.
        seen: a view a window.
        start: the model's index of the stack's first layer.
        dropout_keys: typed keys ``[B, T]``; every layer folds its index in.
    """
    block = Block(config)

    def layer(window: int | None, hidden: jax.Array, parameters: Any, index: jax.Array) -> jax.Array:
        keys = None
        if dropout_keys is not None:
            keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, index)))(dropout_keys)
        out = block.apply({"params": parameters}, hidden, seen[window], dropout_keys=keys)
        return constrain_tokens(out[0])

    if config.remat == "full":
        layer = jax.checkpoint(layer, prevent_cse=False, static_argnums=0)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy, static_argnums=0)

    length = jax.tree.leaves(stack)[0].shape[0]
    windows = config.layer_windows[start : start + length]
    for first, groups, period in plan(windows):
        last = first + groups * period

        def group(hidden: jax.Array, scanned: Any, period: int = period, first: int = first) -> tuple[jax.Array, None]:
            parameters, index = scanned
            for place in range(period):
                one = jax.tree.map(lambda leaf, place=place: leaf[place], parameters) if period > 1 else parameters
                # Says in profiles and in what --debug finds: iteration i of this scan is layer first + period * i.
                with jax.named_scope(f"layers[{start + first + place}::{period}]"):
                    hidden = layer(windows[first + place], hidden, one, index + place)
            return hidden, None

        # The whole stack as it lies where it is scanned whole: a slice would be a copy of the weights.
        part = stack if (first, last) == (0, length) else jax.tree.map(lambda x, a=first, b=last: x[a:b], stack)
        if period > 1:
            part = jax.tree.map(lambda x, n=groups, p=period: x.reshape(n, p, *x.shape[1:]), part)
        hidden = jax.lax.scan(group, hidden, (part, start + first + period * jnp.arange(groups)))[0]
    return hidden


def plan(windows: tuple[int | None, ...]) -> list[tuple[int, int, int]]:
    """How to scan layers of these windows: [(first layer, number of groups, layers a group)].

    The shortest period that repeats at least once, and its tail a layer at a time; without one, runs of equal layers.
    """
    length = len(windows)
    for period in range(1, length // 2 + 1):
        if all(windows[i] == windows[i % period] for i in range(length)):
            groups = length // period
            return [(0, groups, period), *((i, 1, 1) for i in range(groups * period, length))]
    runs: list[tuple[int, int, int]] = []
    for i, window in enumerate(windows):
        if runs and windows[runs[-1][0]] == window:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, 1)
        else:
            runs.append((i, 1, 1))
    return runs
