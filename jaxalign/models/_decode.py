"""Cached decoding: a few new tokens a row, attending to everything already in the cache."""

import jax

from jaxalign.models._attention import View
from jaxalign.models._block import Block
from jaxalign.models._cache import Cache
from jaxalign.models._config import ModelConfig
from jaxalign.models._decoder import Params, finish
from jaxalign.models._embedding import embed_tokens
from jaxalign.models._mesh import constrain_rows
from jaxalign.models._project import transpose_kernels
from jaxalign.models._rope import rotary_tables


def unstack(config: ModelConfig, params: Params) -> Params:
    """Parameters prepared for decoding: layers apart under "blocks" and cast to the compute dtype, once.

    A scan over stacked parameters copies every layer's slice out of the stack at every step. Decoding touches each
    weight once a token, so that copy would cost as much as the products; call this before the decoding loop. An
    adapter is merged into its kernels, in float32, before they are cast: with bfloat16 activations the sum is rounded
    once where ``apply`` rounds its two terms apart. Norms, the score head and the logits' bias keep their dtype: they
    are computed in float32, here as in training.

    Returns:
        {"embed", "blocks": (layer 0, layer 1, ...), "final_norm" ...}, the blocks' kernels (out, in); accepted by
        ``extend``, ``unembedding`` and ``unembed``, not by ``apply``.
    """
    blocks = []
    for index, length in enumerate(config.stacks):
        stack = params["stacks"][str(index)]
        blocks += [jax.tree.map(lambda leaf, at=at: leaf[at], stack) for at in range(length)]
    prepared = {name: subtree for name, subtree in params.items() if name != "stacks"}
    prepared["blocks"] = tuple(transpose_kernels(config, block) for block in blocks)

    def cast(path: tuple, leaf: jax.Array) -> jax.Array:
        names = [str(getattr(entry, "key", "")) for entry in path]
        float32_at_use = any("norm" in name for name in names) or "score" in names or names == ["unembed", "bias"]
        return leaf if float32_at_use else leaf.astype(config.compute_dtype)

    return jax.tree_util.tree_map_with_path(cast, prepared)


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
        params: from ``unstack`` (fast), or an ordinary tree, which is unstacked here.
        tokens: int ``[B, t]``.
        cache: from ``init_cache``, C columns.
        column: int scalar, the first column written; column + t <= C (beyond it XLA would clamp the write).
        positions: int ``[B, t]``, the tokens' positions in their own rows.
        visible: bool ``[B, t, C]``, the columns each token sees; it must include the token's own column. Layers with a
            window see those of them whose positions are within it.

    Returns:
        (hidden ``[B, t, D]`` after the final norm, the new cache).
    """
    if "blocks" not in params:
        params = unstack(config, params)
    hidden = constrain_rows(embed_tokens(config, params["embed"], tokens, positions))
    cache = cache.place(positions, column)
    distance = positions[:, :, None] - cache.positions[:, None, :]
    views = {}
    for window in dict.fromkeys(config.layer_windows):
        tables = rotary_tables(config, positions, local=window is not None)
        views[window] = View(tables, visible if window is None else visible & (distance < window), window)
    block = Block(config, transposed=True)
    for layer, (parameters, window) in enumerate(zip(params["blocks"], config.layer_windows, strict=True)):
        hidden, cache = block.apply({"params": parameters}, hidden, views[window], cache, layer, column)  # type: ignore
    return finish(config, params, hidden), cache
