"""Log-probabilities straight from hidden states: the product with the vocabulary, one slice of it at a time."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxalign.losses._checks import in_range, positive
from jaxalign.losses._walks import Options, direction_walk, gradient_walk, log_prob_walk, vary, varying_axes

Array = jax.Array

# On two CPU cores 512 to 4096 are equally fast (within 5 %), 8192 is slower: its slices leave the cache between the
# product and the exponential. Accelerators want the products large, memory wants them small.
DEFAULT_CHUNK = 2048


def fused_token_log_probs(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    *,
    chunk_size: int = DEFAULT_CHUNK,
    bias: Array | None = None,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    vocabulary_axis: str | None = None,
) -> Array:
    """Log-probability of each target token, from hidden states, without ever holding ``[T, V]`` logits.

        z_t = hidden_t @ unembedding.T + bias,    z <- soft_cap * tanh(z / soft_cap),    z <- z / temperature
        log p_t = z[t, targets_t] - logsumexp_v z[t, v]

    The same numbers and gradients as ``token_log_probs(logits, targets)``, in float32 to rounding. The vocabulary is
    walked in slices of ``chunk_size``: logits exist as ``[chunk_size, T]``, once in the forward pass, once more
    (recomputed) in the backward pass. Saved for the backward pass: the arguments and one float a token. Where only the
    hidden states are differentiated (a frozen unembedding) their gradient's direction is made in the forward walk and
    nothing is recomputed: a third fewer products.

    Works under ``jit``, ``scan``, ``remat`` and ``vmap``; leading axes are better given as they are than mapped (the
    gradient of a map holds one unembedding gradient a mapped row). Reverse mode only.

    Inside ``jax.shard_map`` (its default ``check_vma=True``): with tokens sharded and the unembedding replicated, each
    device walks its own slices and the unembedding gradient is reduced once, after the walk. With ``vocabulary_axis``,
    ``unembedding`` (and ``bias``) hold this device's slice of the vocabulary, equal in size and in the axis's order;
    ``targets`` are global ids; the result is replicated over the axis, and the hidden gradient summed over it.
    ``check_vma=True`` is needed there because only then does a cotangent say whether it is already summed.

    Args:
      hidden: floating ``[..., T, D]``.
      unembedding: floating ``[V, D]``, the embedding itself where the two are tied.
      targets: integer ``[..., T]``, in [0, V): an id outside is clipped into it, so mask it.
      chunk_size: words a slice; need not divide V.
      bias: floating ``[V]``, or None.
      soft_cap: logits are squashed into +-soft_cap (Gemma 2), or None.
      temperature: logits are divided by it.
      vocabulary_axis: name of the ``shard_map`` mesh axis over which the vocabulary is sharded, or None.

    Returns:
      Natural logarithms (nats) ``[..., T]``: float32, or float64 where an input is. The products are
      taken in the wider dtype of ``hidden`` and ``unembedding`` (give both in bfloat16 for bfloat16 products) and
      accumulated in at least float32; gradients come back in the inputs' dtypes.

    Raises:
      AssertionError: inputs not floating, targets not integer, or shapes that do not match.
      ValueError: a number outside its range, or ``vocabulary_axis`` without ``check_vma=True``.
    """
    chex.assert_type([hidden, unembedding], float)
    targets = jnp.asarray(targets)
    chex.assert_type(targets, int)
    chex.assert_rank(unembedding, 2)
    chex.assert_shape(targets, hidden.shape[:-1])
    chex.assert_axis_dimension(hidden, -1, unembedding.shape[1])
    if bias is not None:
        chex.assert_type(bias, float)
        chex.assert_shape(bias, unembedding.shape[:1])
    in_range(1, float("inf"), chunk_size=chunk_size)
    positive(temperature=temperature)
    if soft_cap is not None:
        positive(soft_cap=soft_cap)
    if vocabulary_axis is not None and vocabulary_axis not in varying_axes(unembedding):
        raise ValueError(
            f"vocabulary_axis={vocabulary_axis!r} needs jax.shard_map(..., check_vma=True) and an unembedding sharded "
            "over that axis"
        )

    options = Options(min(chunk_size, unembedding.shape[0]), soft_cap, temperature, vocabulary_axis)
    dtype = jnp.result_type(hidden, unembedding)
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(dtype)
    # Replicated operands are cast to varying here, outside the custom gradient: the transpose of the cast is the one
    # sum over devices.
    axes = varying_axes(flat, unembedding, targets, bias)
    flat, unembedding = vary(flat, axes), vary(unembedding.astype(dtype), axes)
    bias = None if bias is None else vary(bias, axes)
    token_axes = axes - {vocabulary_axis}
    ids = vary(targets.reshape(-1), token_axes)
    return _compiled_log_probs(options, flat, unembedding, bias, ids).reshape(targets.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(options: Options, hidden: Array, unembedding: Array, bias: Array | None, targets: Array) -> Array:
    return log_prob_walk(options, hidden, unembedding, bias, targets)[0]


def _forward(options: Options, hidden: Any, unembedding: Any, bias: Any, targets: Any) -> tuple[Array, tuple[Any, ...]]:
    """Keeps either the direction of the hidden gradient, or what a second walk needs.

    Both paths keep a tuple of one structure, the part that is not needed empty: JAX remembers one structure for each
    traced call, whichever arguments are differentiated.
    """
    head_is_trained = unembedding.perturbed or (bias is not None and bias.perturbed)
    arguments = (hidden.value, unembedding.value, None if bias is None else bias.value, targets.value)
    if hidden.perturbed and not head_is_trained:
        log_probs, direction = direction_walk(options, *arguments)
        return log_probs, (*arguments, jnp.zeros(0, log_probs.dtype), direction)
    log_probs, normaliser = log_prob_walk(options, *arguments)
    return log_probs, (*arguments, normaliser, jnp.zeros(0, log_probs.dtype))


def _backward(options: Options, residuals: tuple[Any, ...], cotangent: Any) -> tuple[Any, ...]:
    hidden, unembedding, bias, targets, normaliser, direction = residuals
    if isinstance(cotangent, SymbolicZero):
        cotangent = jnp.zeros(cotangent.shape, cotangent.dtype)
    if direction.shape != hidden.shape:
        return (*gradient_walk(options, hidden, unembedding, bias, targets, normaliser, cotangent), None)
    zeros = [None if array is None else jnp.zeros_like(array) for array in (unembedding, bias)]
    return (direction * cotangent[:, None]).astype(hidden.dtype), *zeros, None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)
# Compiled here as well, because an uncompiled shard_map refuses custom gradients that look at symbolic zeros.
_compiled_log_probs = jax.jit(_log_probs, static_argnums=0)
