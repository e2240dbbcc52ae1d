"""Who may see whom, and attention under that rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.models._config import ModelConfig
from jaxalign.models._mesh import ambient_mesh, length_axis
from jaxalign.models._rope import Tables, rotary_tables


def visibility(
    query_example: jax.Array,
    query_branch: jax.Array,
    query_position: jax.Array,
    key_example: jax.Array,
    key_branch: jax.Array,
    key_position: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """The one rule of visibility: same example, a key of the prompt or of the query's own branch, causal by position.

    visible[t, s] = example_t = example_s != 0  and  branch_s in {0, branch_t}  and  position_s <= position_t
    (and  position_t - position_s < window).

    Padding, packing, shared prompts and sliding windows are all instances of it. Example 0 is padding: it sees
    nothing and is seen by nothing.

    Args:
        query_example, query_branch, query_position: int ``[..., T]``.
        key_example, key_branch, key_position: int ``[..., S]``, leading axes broadcast against the query's.
        window: how many positions back a query sees, itself included (tokens); None for all.

    Returns:
        bool ``[..., T, S]``.
    """
    same = (query_example[..., :, None] == key_example[..., None, :]) & (key_example[..., None, :] != 0)
    own = (key_branch[..., None, :] == 0) | (key_branch[..., None, :] == query_branch[..., :, None])
    distance = query_position[..., :, None] - key_position[..., None, :]
    visible = same & own & (distance >= 0)
    return visible if window is None else visible & (distance < window)


def default_positions(example: jax.Array, branch: jax.Array) -> jax.Array:
    """Running count of the tokens a token's own thread holds before it: its example's prompt and its own branch.

    With neither packing nor branches this is 0, 1, 2 ...; padding gets 0.

    Args:
        example, branch: int ``[..., T]``.

    Returns:
        int32 ``[..., T]``.
    """
    index = jnp.broadcast_to(jnp.arange(example.shape[-1]), example.shape)
    before = visibility(example, branch, index, example, branch, index)
    return jnp.maximum(before.sum(-1, dtype=jnp.int32) - 1, 0)


class Sight(NamedTuple):
    """Who sees whom, as what ``visibility`` reads, where its ``[T, T]`` result is too large to hold."""

    tokens: jax.Array
    """int ``[3, B or 1, T]``: example, branch and position."""
    mask: jax.Array | None = None
    """bool ``[B or 1, T, T]`` of the caller's, and-ed."""


class View(NamedTuple):
    """What a layer's attention is told about its tokens."""

    tables: Tables | None
    """Rotary cos and sin of the tokens' positions."""
    visible: jax.Array | None
    """bool ``[B or 1, T, S]``: the whole rule, windows included; None where ``sight`` stands for it."""
    window: int | None = None
    """The layer's window, which ``visible`` already holds: for kernels that make their own mask."""
    example: jax.Array | None = None
    """int ``[B or 1, T]``, where several examples or padding share a row."""
    ordered: bool = False
    """The rule is: same example, causal by index. False where branches, or a mask of the caller's, add to it."""
    sight: Sight | None = None
    """Set where the mesh splits rows of tokens and a ring attends (``_ring``)."""


def views(
    config: ModelConfig,
    positions: jax.Array,
    example: jax.Array | None,
    branch: jax.Array | None,
    attention_mask: jax.Array | None,
) -> dict[int | None, View]:
    """One ``View`` a window that the model has.

    Where the ambient mesh splits rows of T tokens it holds no ``visible``, unless ``config.attention`` asks for "xla".

    Args:
        config: the model.
        positions: int ``[B or 1, T]``, increasing along an example (and each of its branches).
        example, branch: int ``[B or 1, T]``; None = one example, no branches.
        attention_mask: bool ``[B, T, T]``, and-ed.
    """
    plain = jnp.ones((1, positions.shape[-1]), jnp.int32)
    examples = plain if example is None else example
    branches = 0 * plain if branch is None else branch
    sight = None
    if length_axis(ambient_mesh(), positions.shape[-1]) is not None and config.attention != "xla":
        tokens = jnp.stack(jnp.broadcast_arrays(examples, branches, positions))
        sight = Sight(tokens, attention_mask)
    found = {}
    for window in dict.fromkeys(config.layer_windows):
        visible = None
        if sight is None:
            visible = visibility(examples, branches, positions, examples, branches, positions, window)
            if attention_mask is not None:
                visible = visible & attention_mask
        tables = rotary_tables(config, positions, local=window is not None)
        found[window] = View(tables, visible, window, example, branch is None and attention_mask is None, sight)
    return found


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: jax.Array,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """softmax(cap(scale q k^T)) v under a boolean mask, softmax in float32, grouped-query where key heads are fewer.

    cap(s) = soft_cap tanh(s / soft_cap), or s. A query that sees nothing gets a finite value nobody may use (the mean
    of all values), never NaN. The plain form, on every platform and for any mask: what other kernels are held to.

    Args:
        query: ``[B, T, H, K]``.
        key, value: ``[B, G, S, K]``, heads before tokens as a ``Cache`` holds them; G divides H.
        visible: bool ``[B or 1, T, S]``.
        scale: None = 1 / sqrt(K).
        soft_cap: None = no cap.

    Returns:
        ``[B, T, H, K]`` in the query's dtype.
    """
    rows, tokens, heads, size = query.shape
    groups = key.shape[1]
    # The heads of a group and the tokens share one axis of the products.
    grouped = query.reshape(rows, tokens, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(rows, groups, -1, size)
    scores = jnp.einsum("bgqk,bgsk->bgqs", grouped, key.astype(query.dtype), preferred_element_type=jnp.float32)
    scores = scores * (size**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = scores.reshape(rows, groups, -1, tokens, key.shape[2])
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype).reshape(rows, groups, -1, key.shape[2])
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights, value.astype(query.dtype))
    mixed = mixed.reshape(rows, groups, -1, tokens, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, tokens, heads, size)
