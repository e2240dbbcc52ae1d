"""Freezing lower layers: the frozen part is another argument, never differentiated."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params


def restack(config: ModelConfig, params: Params, stacks: tuple[int, ...]) -> tuple[ModelConfig, Params]:
    """The same model with its layers divided into other stacks, e.g. ``(24, 6)``.

    Raises:
        InputError: lengths that are not positive or do not sum to the number of layers.
    """
    new_config = config.replace(stacks=tuple(stacks))
    if new_config.stacks == config.stacks:
        return config, params
    whole = [params["stacks"][str(index)] for index in range(len(config.stacks))]
    joined = whole[0] if len(whole) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *whole)
    divided, start = {}, 0
    for index, length in enumerate(new_config.stacks):
        divided[str(index)] = jax.tree.map(lambda leaf, a=start, b=start + length: leaf[a:b], joined)
        start += length
    return new_config, {**params, "stacks": divided}


def freeze(config: ModelConfig, params: Params, layers: int) -> tuple[ModelConfig, Params, Params]:
    """Split a model into a trainable top and a frozen bottom: the embeddings and the first ``layers`` blocks.

    The frozen tree is to be passed as an argument that is not differentiated; then no residual of the frozen stack is
    kept for the backward pass, and its output can be computed once (``trunk``) and cached. With tied embeddings the
    unembedding is frozen too.

    Args:
        config, params: the model, in any stacks.
        layers: how many blocks from the bottom are frozen; 0 freezes nothing, embeddings included.

    Returns:
        (config restacked as (layers, rest), trainable, frozen); ``combine(trainable, frozen)`` is the whole model.

    Raises:
        InputError: ``layers`` outside 0 .. config.layers.
    """
    if not 0 <= layers <= config.layers:
        raise InputError(f"frozen layers: {layers} is not between 0 and the model's {config.layers} layers")
    if layers == 0:
        return config, params, {}
    rest = config.layers - layers
    config, params = restack(config, params, (layers, rest) if rest else (layers,))
    frozen = {"embed": params["embed"], "stacks": {"0": params["stacks"]["0"]}}
    trainable = {name: subtree for name, subtree in params.items() if name != "embed"}
    trainable["stacks"] = {name: stack for name, stack in params["stacks"].items() if name != "0"}
    return config, trainable, frozen


def combine(trainable: Params, frozen: Params) -> Params:
    """Deep merge of two parameter trees.

    Raises:
        ValueError: a leaf that both trees hold; the message names its path.
    """
    return _merge(trainable, frozen, "")


def _merge(left: Any, right: Any, path: str) -> Any:
    if not (isinstance(left, dict) and isinstance(right, dict)):
        raise ValueError(f"combine: both trees hold {path!r}")
    merged = dict(left)
    for name, value in right.items():
        merged[name] = _merge(left[name], value, f"{path}/{name}".lstrip("/")) if name in left else value
    return merged
