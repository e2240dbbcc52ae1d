"""Cached decoding: a few new tokens a row, attending to everything already in the cache."""

import jax
import jax.numpy as jnp

from jaxalign.models._block import Block, normalise, rotary_tables
from jaxalign.models._cache import Cache
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params
from jaxalign.models._embedding import embed_tokens


def unstack(config: ModelConfig, params: Params) -> Params:
    """Parameters prepared for decoding: layers apart under "blocks" and cast to the compute dtype, once.

    A scan over stacked parameters copies every layer's slice out of the stack at every step. Decoding touches each
    weight once a token, so that copy would cost as much as the products; call this before the decoding loop.

    Returns:
        {"embed", "blocks": (layer 0, layer 1, ...), "final_norm"(, "unembed")}; accepted by ``extend``,
        ``unembedding`` and ``unembed``, not by ``apply``.
    """
    blocks = []
    for index, length in enumerate(config.stacks):
        stack = params["stacks"][str(index)]
        blocks += [jax.tree.map(lambda leaf, at=at: leaf[at], stack) for at in range(length)]
    prepared = {name: subtree for name, subtree in params.items() if name != "stacks"} | {"blocks": tuple(blocks)}
    return jax.tree.map(lambda leaf: leaf.astype(config.compute_dtype), prepared)


def extend(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    cache: Cache,
    *,
    column: jax.Array | int,
    positions: jax.Array,
    visible: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Run new tokens: write their keys and values at ``column .. column + t``, attend to the cache under ``visible``.

    Prefill is one call with t = the prompts' width, a decoding step one call with t = 1. The cache is meant to be a
    loop carry (``lax.while_loop``), updated in place.

    Args:
        config: the model (static).
        params: from ``unstack`` (fast), or an ordinary tree.
        tokens: int ``[B, t]``.
        cache: from ``init_cache``, C columns.
        column: int scalar, the first column written; column + t <= C (beyond it XLA would clamp the write).
        positions: int ``[B, t]``, the tokens' positions in their own rows.
        visible: bool ``[B, t, C]``, the columns each token sees; it must include the token's own column.

    Returns:
        (hidden ``[B, t, D]`` after the final norm, the new cache).
    """
    hidden = embed_tokens(config, params["embed"], tokens, positions)
    tables = rotary_tables(config, positions)
    block = Block(config)

    def run(carry: tuple[jax.Array, Cache], layer: jax.Array | int, parameters: Params) -> tuple[jax.Array, Cache]:
        hidden, cache = carry
        return block.apply({"params": parameters}, hidden, tables, visible, cache, layer, column)  # type: ignore

    if "blocks" in params:
        for layer, parameters in enumerate(params["blocks"]):
            hidden, cache = run((hidden, cache), layer, parameters)
        return normalise(config, params["final_norm"], hidden), cache

    start = 0
    for index, length in enumerate(config.stacks):
        layers = jnp.arange(start, start + length)
        (hidden, cache), _ = jax.lax.scan(
            lambda carry, scanned: (run(carry, *scanned), None),
            (hidden, cache),
            (layers, params["stacks"][str(index)]),
        )
        start += length
    return normalise(config, params["final_norm"], hidden), cache
