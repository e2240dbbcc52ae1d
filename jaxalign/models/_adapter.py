"""Low-rank adapters as a parameter tree beside the model's: drawn, laid out, merged.

    {"stacks": {"0": {"query": {"lora_a": [L, D, r], "lora_b": [L, r, H, K]}, ...}}}

``combine(lora, base)`` is the adapted model; the base alone is the adapter turned off.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models._axes import logical_axes
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params, init
from jaxalign.models._lora import PARTS, LoRA

INPUT_AXES = {part: 2 if part == "output" else 1 for part in PARTS}
"""How many of a kernel's leading axes (after the layers') are its input: the attention's output reads ``[H, K]``."""


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def init_lora(config: ModelConfig, key: jax.Array, *, dtype: jnp.dtype | str = jnp.float32) -> Params:
    """An adapter that changes nothing yet: A uniform in +-1/sqrt(inputs), as PEFT draws it, B zero.

    (PEFT's Kaiming-uniform with a = sqrt(5) has just this bound.) The key is split by layer and part: stacks and other
    targets change no number.

    Args:
        config: the model, with ``config.lora``.
        key: a PRNG key.
        dtype: of every leaf.

    Returns:
        ``{"stacks": {stack: {part: {"lora_a" [L, in..., r], "lora_b" [L, r, out...]}}}}``, the adapted parts alone.

    Raises:
        InputError: no ``config.lora``, a target that matches nothing, a first layer that is no stack's first.
    """
    rank = _lora(config).rank
    layer_keys = jax.random.split(key, config.layers)
    tree: Params = {}
    for name, start, part, kernel in _adapted(config):
        inputs, outputs = _sides(part, kernel.shape[1:])
        bound = 1 / math.sqrt(math.prod(inputs))
        draw = functools.partial(_draw, number=PARTS.index(part), shape=(*inputs, rank), bound=bound)
        tree.setdefault(name, {})[part] = {
            "lora_a": jax.vmap(draw)(layer_keys[start : start + kernel.shape[0]]).astype(dtype),
            "lora_b": jnp.zeros((kernel.shape[0], rank, *outputs), dtype),
        }
    return {"stacks": tree}


def lora_axes(config: ModelConfig) -> Params:
    """The adapter's tree with the logical names of each leaf's axes: the kernel's own, and ``rank`` (replicated).

    To be combined with ``logical_axes(config)``, the base's.
    """
    axes = logical_axes(config)["stacks"]
    tree: Params = {}
    for name, _, part, _ in _adapted(config):
        layers, *kernel = axes[name][part]["kernel"]
        inputs, outputs = _sides(part, tuple(kernel))
        tree.setdefault(name, {})[part] = {
            "lora_a": (layers, *inputs, "rank"),
            "lora_b": (layers, "rank", *outputs),
        }
    return {"stacks": tree}


def merge_lora(config: ModelConfig, base: Params, lora: Params, *, dtype: jnp.dtype | str | None = None) -> Params:
    """The plain model that the adapted one is: kernel + scale * A B, computed in float32.

    Args:
        config: the model, with ``config.lora``.
        base: its parameters.
        lora: the adapter, from ``init_lora`` or ``load_adapter``.
        dtype: of the merged kernels; None = the base's own (bfloat16 rounds most of a small update away).

    Returns:
        A tree like ``base``, for ``config.replace(lora=None)``; leaves that are not adapted are shared, not copied.

    Raises:
        InputError: no ``config.lora``; a kernel that the base does not have, or in another shape.
    """
    scale = _lora(config).scale
    merged = dict(base["stacks"])
    for name, parts in lora["stacks"].items():
        merged[name] = dict(merged.get(name, {}))
        for part, leaves in parts.items():
            own = merged[name].get(part)
            if own is None:
                raise InputError(f"adapter: the model has no 'stacks/{name}/{part}' to adapt")
            _check_shapes(f"stacks/{name}/{part}", part, own["kernel"], leaves)
            kernel = _merge(own["kernel"], leaves["lora_a"], leaves["lora_b"], part=part, scale=scale, dtype=dtype)
            merged[name][part] = {**own, "kernel": kernel}
    return {**base, "stacks": merged}


@functools.partial(jax.jit, static_argnames=("part", "scale", "dtype"))
def _merge(kernel: jax.Array, a: jax.Array, b: jax.Array, *, part: str, scale: float, dtype: Any) -> jax.Array:
    inputs = "ij"[: INPUT_AXES[part]]
    outputs = "xy"[: kernel.ndim - 1 - INPUT_AXES[part]]
    # Layers are a batch axis; "highest": accelerators' fast products would lose half of the update's bits.
    update = jnp.einsum(
        f"l{inputs}r,lr{outputs}->l{inputs}{outputs}",
        a.astype(jnp.float32),
        b.astype(jnp.float32),
        precision="highest",
    )
    return (kernel.astype(jnp.float32) + scale * update).astype(dtype or kernel.dtype)


def _check_shapes(path: str, part: str, kernel: jax.Array, leaves: Params) -> None:
    a, b = leaves["lora_a"], leaves["lora_b"]
    inputs = 1 + INPUT_AXES[part]
    if a.shape[:-1] != kernel.shape[:inputs] or (b.shape[0], *b.shape[2:]) != (a.shape[0], *kernel.shape[inputs:]):
        raise InputError(f"adapter: {path} has lora_a {a.shape} and lora_b {b.shape} beside a kernel {kernel.shape}")


def _draw(key: jax.Array, *, number: int, shape: tuple[int, ...], bound: float) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound)


def _lora(config: ModelConfig) -> LoRA:
    if config.lora is None:
        raise InputError("ModelConfig.lora: there is no adapter without it")
    return config.lora


def _adapted(config: ModelConfig) -> Iterator[tuple[str, int, str, Any]]:
    """(stack, its first layer, part, the kernel's shape) of everything that has an adapter."""
    lora = _lora(config)
    starts = [sum(config.stacks[:index]) for index in range(len(config.stacks))]
    if lora.first_layer not in starts:
        raise InputError(
            f"LoRA.first_layer: {lora.first_layer} is not where one of the stacks {config.stacks} begins; restack there"
        )
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))["stacks"]
    for index, start in enumerate(starts):
        if start >= lora.first_layer:
            stack = shapes[str(index)]
            for part in lora.parts(stack):
                yield str(index), start, part, stack[part]["kernel"]


def _sides(part: str, kernel: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """A layer's kernel axes (sizes or names): (inputs, outputs)."""
    return kernel[: INPUT_AXES[part]], kernel[INPUT_AXES[part] :]
