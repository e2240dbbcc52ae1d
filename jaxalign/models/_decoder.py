"""The decoder as pure functions over a parameter tree.

params = {"embed": {"tokens": [V, E](, "positions": [P, D])(, "project_in": [E, D])},
          "stacks": {"0": {... leaves [L0, ...]}, "1": {...}},
          "final_norm": {...}(, "project_out": {"kernel": [D, E]}),
          "unembed": {"kernel": [V, E](, "bias": [V])}  or  "score": {"kernel": [labels, E]}}

E = D but for models that project their embeddings; a tied model has no unembedding kernel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models._attention import View, default_positions, views
from jaxalign.models._block import INIT_STD, Block
from jaxalign.models._config import ModelConfig
from jaxalign.models._embedding import embed_tokens
from jaxalign.models._mesh import constrain_tokens
from jaxalign.models._norm import init_norm, normalise
from jaxalign.models._stack import run_stack

Params = dict[str, Any]


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
    names = ("tokens", "positions", "unembed", "layers")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    for number, name in enumerate(("project_in", "project_out", "score")):  # rarer: they leave the others' keys alone
        keys[name] = jax.random.fold_in(key, number)
    tables = {path: INIT_STD * jax.random.normal(keys[name], shape) for name, (path, shape) in _tables(config).items()}
    layer_keys = jax.random.split(keys["layers"], config.layers)
    stacks, start = {}, 0
    for index, length in enumerate(config.stacks):
        stacks[str(index)] = jax.vmap(functools.partial(_init_block, config))(layer_keys[start : start + length])
        start += length
    params: Params = {"stacks": stacks}
    for (first, second), leaf in tables.items():
        params.setdefault(first, {})[second] = leaf
    if config.final_norm:
        params["final_norm"] = init_norm(config, config.width)
    if config.unembedding_bias and not config.labels:
        params.setdefault("unembed", {})["bias"] = jnp.zeros((config.vocab_size,))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _tables(config: ModelConfig) -> dict[str, tuple[tuple[str, str], tuple[int, ...]]]:
    """The matrices outside the blocks: name -> (path, shape)."""
    v, d, e = config.vocab_size, config.width, config.hidden_width
    tables: dict[str, tuple[tuple[str, str], tuple[int, ...]]] = {"tokens": (("embed", "tokens"), (v, e))}
    if config.position == "learned":
        tables["positions"] = (("embed", "positions"), (config.max_positions + config.position_offset, d))
    if config.embedding_width is not None:
        tables["project_in"] = (("embed", "project_in"), (e, d))
        tables["project_out"] = (("project_out", "kernel"), (d, e))
    if config.labels:
        tables["score"] = (("score", "kernel"), (config.labels, e))
    elif not config.tied_embeddings:
        tables["unembed"] = (("unembed", "kernel"), (v, e))
    return tables


def _init_block(config: ModelConfig, key: jax.Array) -> Params:
    hidden = jnp.zeros((1, 1, config.width))
    view = views(config, jnp.zeros((1, 1), jnp.int32), None, None, None)[config.layer_windows[0]]
    return Block(config.replace(attention="xla")).init(key, hidden, view)["params"]


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
    dropout_keys: jax.Array | None = None,
) -> jax.Array:
    """Hidden states after the final norm.

    Args:
        config: the model (static under ``jax.jit``).
        params: its parameters; with ``trunk``, ``params["embed"]["tokens"]`` and ``params["stacks"]["0"]`` are unused.
        tokens: int ``[..., T]``.
        positions: int ``[..., T]``, increasing along an example and along each of its branches; default: the running
            index within the row, within the example where one is given, continuing from the prompt in every branch.
        example: int ``[..., T]``, 0 = padding, ids from 1 are packed examples that do not see each other; default: the
            row is one example.
        branch: int ``[..., T]``, 0 = prompt, k >= 1 = the k-th answer; answers do not see each other.
        attention_mask: bool ``[..., T, T]``, and-ed with the rule of ``visibility``.
        trunk: ``[..., T, D]``, what ``models.trunk`` returned for the same tokens: the first stack is not run again.
        dropout_keys: typed keys ``[..., T]``, one a token, from which adapters with dropout draw (``config.lora``);
            None = no dropout.

    Returns:
        ``[..., T, E]`` in ``config.compute_dtype``, E = ``config.hidden_width``.
    """
    positions, seen = _views(config, tokens, positions, example, branch, attention_mask)
    if trunk is None:
        hidden = _embed(config, params, tokens, positions)
        first = 0
    else:
        hidden = constrain_tokens(trunk.reshape(-1, *trunk.shape[-2:]).astype(config.compute_dtype))
        first = 1
    keys = None if dropout_keys is None else dropout_keys.reshape(-1, dropout_keys.shape[-1])
    for index in range(first, len(config.stacks)):
        start = sum(config.stacks[:index])
        hidden = run_stack(config, params["stacks"][str(index)], hidden, seen, start=start, dropout_keys=keys)
    return finish(config, params, hidden).reshape(*tokens.shape, config.hidden_width)


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
    positions, seen = _views(config, tokens, positions, example, branch, attention_mask)
    hidden = run_stack(config, params["stacks"]["0"], _embed(config, params, tokens, positions), seen, start=0)
    return hidden.reshape(*tokens.shape, config.width)


def finish(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """What follows the last block: the final norm and, where embeddings are projected, the way back to their width."""
    if config.final_norm:
        with jax.named_scope("final_norm"):
            hidden = normalise(config, params["final_norm"], hidden)
    if config.embedding_width is not None:
        hidden = hidden @ params["project_out"]["kernel"].astype(hidden.dtype)
    return hidden


def unembedding(config: ModelConfig, params: Params) -> jax.Array:
    """The matrix ``[V, E]`` whose product with hidden states gives logits: the embedding table when tied.

    Raises:
        InputError: a classifier, which has none.
    """
    if config.labels:
        raise InputError(f"ModelConfig.labels = {config.labels}: a classifier is no language model, it has no logits")
    return params["embed"]["tokens"] if config.tied_embeddings else params["unembed"]["kernel"]


def logits(config: ModelConfig, params: Params, tokens: jax.Array, **context: Any) -> jax.Array:
    """Next-token logits, float32 ``[..., T, V]``: whole, so for tests and short rows; arguments as in ``apply``.

    To score given targets use ``target_log_probs``, which never holds ``[T, V]``.
    """
    hidden = apply(config, params, tokens, **context)
    return unembed(config, params, hidden)


def unembed(config: ModelConfig, params: Params, hidden: jax.Array, *, vocabulary_first: bool = False) -> jax.Array:
    """Logits of hidden states: ``[..., E]`` to float32 ``[..., V]``, accumulated in float32.

    cap(hidden @ unembedding^T + bias),  cap(z) = logit_soft_cap tanh(z / logit_soft_cap)

    With ``vocabulary_first``, ``[B, E]`` to ``[V, B]``: the product that reads the matrix as it lies, for decoding.
    """
    kernel = unembedding(config, params).astype(hidden.dtype)
    equation = "vd,bd->vb" if vocabulary_first else "...d,vd->...v"
    operands = (kernel, hidden) if vocabulary_first else (hidden, kernel)
    values = jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)
    if config.unembedding_bias:
        bias = params["unembed"]["bias"].astype(jnp.float32)
        values = values + (bias[:, None] if vocabulary_first else bias)
    if config.logit_soft_cap is not None:
        values = config.logit_soft_cap * jnp.tanh(values / config.logit_soft_cap)
    return values


def score(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """The score head of a classifier or reward model on hidden states: ``[..., E]`` to float32 ``[..., labels]``.

    A linear map without bias, in float32 whatever the compute dtype; Hugging Face's classifiers read it at the last
    token that is not padding.

    Raises:
        InputError: the model has no such head.
    """
    if not config.labels:
        raise InputError("ModelConfig.labels = 0: a language model has no score head")
    kernel = params["score"]["kernel"].astype(jnp.float32)
    # Highest precision: accelerators' fast float32 products keep no more than bfloat16's digits.
    return jnp.einsum("...d,nd->...n", hidden.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)


def _views(
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array | None,
    example: jax.Array | None,
    branch: jax.Array | None,
    attention_mask: jax.Array | None,
) -> tuple[jax.Array, dict[int | None, View]]:
    """Positions ``[B, T]`` (``[1, T]`` where nothing distinguishes the rows) and a view a window."""
    length = tokens.shape[-1]
    example, branch = (None if ids is None else ids.reshape(-1, length) for ids in (example, branch))
    if positions is None:
        plain = jnp.ones((1, length), jnp.int32)
        examples, branches = plain if example is None else example, 0 * plain if branch is None else branch
        positions = default_positions(*jnp.broadcast_arrays(examples, branches))
    positions = positions.reshape(-1, length)
    if attention_mask is not None:
        attention_mask = attention_mask.reshape(-1, *attention_mask.shape[-2:])
    return positions, views(config, positions, example, branch, attention_mask)


def _embed(config: ModelConfig, params: Params, tokens: jax.Array, positions: jax.Array) -> jax.Array:
    with jax.named_scope("embed"):
        return constrain_tokens(embed_tokens(config, params["embed"], tokens.reshape(-1, tokens.shape[-1]), positions))
