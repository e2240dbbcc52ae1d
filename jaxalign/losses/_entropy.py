"""Entropy of next-token distributions straight from hidden states, a few tokens at a time."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses._checks import in_range, positive

Array = jax.Array

# Tokens whose logits are held at once: [64, V] float32 is 13 MB at 50,257 words.
DEFAULT_TOKENS = 64


def fused_token_entropy(
    hidden: Array,
    unembedding: Array,
    *,
    chunk_size: int = DEFAULT_TOKENS,
    bias: Array | None = None,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    vocabulary_axis: str | None = None,
) -> Array:
    """Entropy of softmax(z_t) for every token t, without ever holding ``[T, V]`` logits.

        H_t = logsumexp_v z[t, v] - sum_v p[t, v] z[t, v],    z as in ``fused_token_log_probs``

    Args:
      hidden: floating ``[..., T, D]``.
      unembedding: floating ``[V, D]``; inside ``jax.shard_map`` with ``vocabulary_axis``, this device's slice of it.
      chunk_size: tokens whose logits are held at once.
      bias: floating ``[V]``, or None.
      soft_cap, temperature: as in :func:`fused_token_log_probs`.
      vocabulary_axis: name of the mesh axis over which the vocabulary is sharded, or None.

    Returns:
      Nats ``[..., T]``, at least float32, in [0, log V]. Differentiable; the backward pass holds the logits of one
      chunk at a time too.

    Raises:
      AssertionError: inputs not floating, or shapes that do not match.
      ValueError: a number outside its range.
    """
    chex.assert_type([hidden, unembedding], float)
    chex.assert_rank(unembedding, 2)
    chex.assert_axis_dimension(hidden, -1, unembedding.shape[1])
    in_range(1, float("inf"), chunk_size=chunk_size)
    positive(temperature=temperature)
    dtype = jnp.promote_types(jnp.result_type(hidden, unembedding), jnp.float32)

    @jax.checkpoint
    def entropy(rows: Array) -> Array:
        logits = jnp.einsum("td,vd->tv", rows, unembedding.astype(rows.dtype), preferred_element_type=dtype)
        if bias is not None:
            logits = logits + bias.astype(dtype)
        if soft_cap is not None:
            logits = soft_cap * jnp.tanh(logits / soft_cap)
        logits = logits / temperature
        largest = jax.lax.stop_gradient(logits.max(-1))
        if vocabulary_axis is not None:
            largest = jax.lax.pmax(largest, vocabulary_axis)
        shifted = logits - largest[:, None]
        weights = jnp.exp(shifted)
        total, first = weights.sum(-1), (weights * shifted).sum(-1)
        if vocabulary_axis is not None:
            total, first = jax.lax.psum((total, first), vocabulary_axis)
        return jnp.maximum(jnp.log(total) - first / total, 0.0)

    flat = hidden.reshape(-1, hidden.shape[-1])
    count = flat.shape[0]
    size = min(chunk_size, max(count, 1))
    padded = jnp.pad(flat, ((0, -count % size), (0, 0))).reshape(-1, size, flat.shape[-1])
    return jax.lax.map(entropy, padded).reshape(-1)[:count].reshape(hidden.shape[:-1])
