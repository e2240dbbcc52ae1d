"""Who may see whom, and attention under that rule."""

import jax
import jax.numpy as jnp


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


def attention(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v under a boolean mask, softmax in float32, grouped-query where key heads are fewer.

    A query that sees nothing gets a finite value nobody may use (the mean of all values), never NaN.

    Args:
        query: ``[B, T, H, K]``.
        key, value: ``[B, S, G, K]``, G divides H.
        visible: bool ``[B or 1, T, S]``.

    Returns:
        ``[B, T, H, K]`` in the query's dtype.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=visible[:, None])
