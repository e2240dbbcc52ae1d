"""The decoder as pure functions over a parameter tree.

params = {"embed": {"tokens": [V, D](, "positions": [P, D])},
          "stacks": {"0": {... leaves [L0, ...]}, "1": {...}},
          "final_norm": {...}(, "unembed": {"kernel": [V, D]})}
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.models._attention import default_positions, visibility
from jaxalign.models._block import INIT_STD, Block, init_norm, norm_shapes, normalise, rotary_tables
from jaxalign.models._config import ModelConfig
from jaxalign.models._embedding import embed_tokens
from jaxalign.models._mesh import constrain_rows

Params = dict[str, Any]

_AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "query": {"kernel": ("embed", "heads", "head_dim"), "bias": ("heads", "head_dim")},
    "key": {"kernel": ("embed", "kv_heads", "head_dim"), "bias": ("kv_heads", "head_dim")},
    "value": {"kernel": ("embed", "kv_heads", "head_dim"), "bias": ("kv_heads", "head_dim")},
    "output": {"kernel": ("heads", "head_dim", "embed"), "bias": ("norm",)},
    "gate": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "up": {"kernel": ("embed", "mlp"), "bias": ("mlp",)},
    "down": {"kernel": ("mlp", "embed"), "bias": ("norm",)},
    "attention_norm": {"scale": ("norm",), "bias": ("norm",)},
    "mlp_norm": {"scale": ("norm",), "bias": ("norm",)},
}


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def init(config: ModelConfig, key: jax.Array, *, dtype: jnp.dtype | str = jnp.float32) -> Params:
    """Random parameters: normal(0, 0.02), residual outputs scaled by 1/sqrt(2 L), norms 1, biases 0 (GPT-2's rule).

    The key is split by layer, not by stack: any ``config.stacks`` gives the same model.

    Args:
        config: the model.
        key: a PRNG key.
        dtype: of every leaf.

    Returns:
        The parameter tree.
    """
    tokens_key, positions_key, unembed_key, layers_key = jax.random.split(key, 4)
    embed = {"tokens": INIT_STD * jax.random.normal(tokens_key, (config.vocab_size, config.width))}
    if config.position == "learned":
        embed["positions"] = INIT_STD * jax.random.normal(positions_key, (config.max_positions, config.width))
    layer_keys = jax.random.split(layers_key, config.layers)
    stacks, start = {}, 0
    for index, length in enumerate(config.stacks):
        stacks[str(index)] = jax.vmap(functools.partial(_init_block, config))(layer_keys[start : start + length])
        start += length
    params: Params = {"embed": embed, "stacks": stacks, "final_norm": init_norm(config)}
    if not config.tied_embeddings:
        params["unembed"] = {"kernel": INIT_STD * jax.random.normal(unembed_key, (config.vocab_size, config.width))}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _init_block(config: ModelConfig, key: jax.Array) -> Params:
    hidden = jnp.zeros((1, 1, config.width))
    tables = rotary_tables(config, jnp.zeros((1, 1), jnp.int32))
    return Block(config).init(key, hidden, tables, jnp.ones((1, 1, 1), bool))["params"]


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with, at each leaf, a tuple of the logical names of its axes.

    Names: ``layers, embed, heads, kv_heads, head_dim, mlp, vocab, positions, norm``; ``jaxalign.sharding`` maps them to
    mesh axes.
    """
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    embed = {"tokens": ("vocab", "embed")}
    if config.position == "learned":
        embed["positions"] = ("positions", "embed")
    stacks = {
        name: {part: {leaf: ("layers", *_AXES[part][leaf]) for leaf in leaves} for part, leaves in stack.items()}
        for name, stack in shapes["stacks"].items()
    }
    axes: Params = {
        "embed": embed,
        "stacks": stacks,
        "final_norm": dict.fromkeys(norm_shapes(config), ("norm",)),
    }
    if not config.tied_embeddings:
        axes["unembed"] = {"kernel": ("vocab", "embed")}
    return axes


def apply(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    example: jax.Array | None = None,
    branch: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
    trunk: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm.

    Args:
        config: the model (static under ``jax.jit``).
        params: its parameters; with ``trunk``, ``params["embed"]["tokens"]`` and ``params["stacks"]["0"]`` are unused.
        tokens: int ``[..., T]``.
        positions: int ``[..., T]``; default: the running index within the row, within the example where one is given,
            continuing from the prompt in every branch.
        example: int ``[..., T]``, 0 = padding, ids from 1 are packed examples that do not see each other; default: the
            row is one example.
        branch: int ``[..., T]``, 0 = prompt, k >= 1 = the k-th answer; answers do not see each other.
        attention_mask: bool ``[..., T, T]``, and-ed with the rule of ``visibility``.
        trunk: ``[..., T, D]``, what ``models.trunk`` returned for the same tokens: the first stack is not run again.

    Returns:
        ``[..., T, D]`` in ``config.compute_dtype``.
    """
    tables, visible = _context(config, tokens, positions, example, branch, attention_mask)
    if trunk is None:
        hidden = _embed(config, params, tokens, positions, example, branch)
        first = 0
    else:
        hidden = trunk.reshape(-1, *trunk.shape[-2:]).astype(config.compute_dtype)
        first = 1
    for index in range(first, len(config.stacks)):
        hidden = run_stack(config, params["stacks"][str(index)], hidden, tables, visible)
    hidden = normalise(config, params["final_norm"], hidden)
    return hidden.reshape(*tokens.shape, config.width)


def trunk(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    example: jax.Array | None = None,
    branch: jax.Array | None = None,
    attention_mask: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the embedding and stack "0": what ``apply(trunk=...)`` continues from.

    Needs only ``params["embed"]`` and ``params["stacks"]["0"]``, so the frozen part of ``freeze`` is enough. Arguments
    as in ``apply``.

    Returns:
        ``[..., T, D]`` in ``config.compute_dtype``.
    """
    tables, visible = _context(config, tokens, positions, example, branch, attention_mask)
    hidden = _embed(config, params, tokens, positions, example, branch)
    hidden = run_stack(config, params["stacks"]["0"], hidden, tables, visible)
    return hidden.reshape(*tokens.shape, config.width)


def unembedding(config: ModelConfig, params: Params) -> jax.Array:
    """The matrix ``[V, D]`` whose product with hidden states gives logits: the embedding table when tied."""
    return params["embed"]["tokens"] if config.tied_embeddings else params["unembed"]["kernel"]


def logits(config: ModelConfig, params: Params, tokens: jax.Array, **context: Any) -> jax.Array:
    """Next-token logits, float32 ``[..., T, V]``: whole, so for tests and short rows; arguments as in ``apply``.

    To score given targets use ``target_log_probs``, which never holds ``[T, V]``.
    """
    hidden = apply(config, params, tokens, **context)
    return unembed(config, params, hidden)


def unembed(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Logits of hidden states: ``[..., D]`` to float32 ``[..., V]``, accumulated in float32."""
    kernel = unembedding(config, params).astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, kernel, preferred_element_type=jnp.float32)


def run_stack(
    config: ModelConfig,
    stack: Params,
    hidden: jax.Array,
    tables: tuple[jax.Array, jax.Array] | None,
    visible: jax.Array,
) -> jax.Array:
    """A stack of blocks by ``lax.scan`` over its stacked parameters, rematerialised by ``config.remat``."""
    block = Block(config)

    def layer(hidden: jax.Array, parameters: Params) -> tuple[jax.Array, None]:
        return constrain_rows(block.apply({"params": parameters}, hidden, tables, visible)[0]), None

    if config.remat == "full":
        layer = jax.checkpoint(layer, prevent_cse=False)
    elif config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
    return jax.lax.scan(layer, hidden, stack)[0]


def _context(
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array | None,
    example: jax.Array | None,
    branch: jax.Array | None,
    attention_mask: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array] | None, jax.Array]:
    """Rotary tables and the visibility mask, leading axes flattened to one."""
    positions, example, branch = _coordinates(tokens, positions, example, branch)
    visible = visibility(example, branch, positions, example, branch, positions)
    if attention_mask is not None:
        visible = visible & attention_mask.reshape(-1, *attention_mask.shape[-2:])
    return rotary_tables(config, positions), visible


def _embed(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    positions: jax.Array | None,
    example: jax.Array | None,
    branch: jax.Array | None,
) -> jax.Array:
    positions, _, _ = _coordinates(tokens, positions, example, branch)
    return constrain_rows(embed_tokens(config, params["embed"], tokens.reshape(-1, tokens.shape[-1]), positions))


def _coordinates(
    tokens: jax.Array, positions: jax.Array | None, example: jax.Array | None, branch: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Positions, example and branch ids ``[B, T]``; where nothing distinguishes the rows, ``[1, T]``."""
    length = tokens.shape[-1]
    plain = jnp.ones((1, length), jnp.int32)
    example = plain if example is None else example.reshape(-1, length)
    branch = 0 * plain if branch is None else branch.reshape(-1, length)
    if positions is None:
        positions = default_positions(*jnp.broadcast_arrays(example, branch))
    return positions.reshape(-1, length), example, branch
