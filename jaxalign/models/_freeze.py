"""Freezing: what does not train is another argument, never differentiated."""

import re
from collections.abc import Sequence
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


def freeze(
    config: ModelConfig,
    params: Params,
    layers: int = 0,
    *,
    embeddings: bool = False,
    patterns: Sequence[str] = (),
) -> tuple[ModelConfig, Params, Params]:
    """Split a model into what trains and what does not; what is frozen in any of the three ways is frozen.

    The frozen tree is to be passed as an argument that is not differentiated. Of lower stacks that are frozen whole
    nothing is kept for the backward pass, and the output of the lowest one can be computed once (``trunk``) and cached.
    With tied embeddings the unembedding is the embedding, frozen with it.

    Args:
        config, params: the model, in any stacks.
        layers: the first ``layers`` blocks, and the embeddings below them; 0 freezes none.
        embeddings: the embeddings (of tokens and positions, and what projects them).
        patterns: regular expressions, each matched against the whole path of a leaf, such as "stacks/0/query/kernel" or
            "final_norm/scale"; with ``layers`` the layers above the frozen ones are "stacks/1".

    Returns:
        (config, trainable, frozen); the config is restacked as (layers, rest) where ``layers`` says so;
        ``combine(trainable, frozen)`` is the whole model.

    Raises:
        InputError: ``layers`` outside 0 .. config.layers; a pattern that is no regular expression or matches nothing.
    """
    if not 0 <= layers <= config.layers:
        raise InputError(f"frozen layers: {layers} is not between 0 and the model's {config.layers} layers")
    if layers:
        rest = config.layers - layers
        config, params = restack(config, params, (layers, rest) if rest else (layers,))
    paths = ["/".join(entry.key for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    chosen = {path for pattern in patterns for path in _matching(pattern, paths)}
    if layers or embeddings:
        chosen |= {path for path in paths if path.startswith("embed/")}
    if layers:
        chosen |= {path for path in paths if path.startswith("stacks/0/")}
    trainable: Params = {}
    frozen: Params = {}
    for path, leaf in zip(paths, jax.tree.leaves(params), strict=True):
        *above, name = path.split("/")
        tree = frozen if path in chosen else trainable
        for part in above:
            tree = tree.setdefault(part, {})
        tree[name] = leaf
    return config, trainable, frozen


def _matching(pattern: str, paths: list[str]) -> list[str]:
    try:
        found = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise InputError(f"frozen parameters: {pattern!r} is not a regular expression ({error})") from None
    if not found:
        raise InputError(f"frozen parameters: {pattern!r} matches no parameter; they have names such as {paths[-1]!r}")
    return found


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
