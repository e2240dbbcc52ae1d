"""Log-probabilities straight from hidden states: the product with the vocabulary, one slice of it at a time."""

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.losses._checks import in_range, positive

Array = jax.Array

# On two CPU cores 512 to 4096 are equally fast (within 5 %), 8192 is slower: its slices leave the cache between the
# product and the exponential. Accelerators want the products large, memory wants them small.
DEFAULT_CHUNK = 2048


class _Options(NamedTuple):
    """What is fixed at trace time."""

    chunk_size: int
    soft_cap: float | None
    temperature: float
    vocabulary_axis: str | None


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
    (recomputed) in the backward pass. Saved for the backward pass: the arguments and one float a token.

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
      Natural logarithms (nats) ``[..., T]``: float32, or float64 where an input is. bfloat16 inputs are multiplied as
      they are and accumulated in float32; gradients come back in the inputs' dtypes.

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
    if vocabulary_axis is not None and vocabulary_axis not in _varying(unembedding):
        raise ValueError(
            f"vocabulary_axis={vocabulary_axis!r} needs jax.shard_map(..., check_vma=True) and an unembedding sharded "
            "over that axis"
        )

    options = _Options(min(chunk_size, unembedding.shape[0]), soft_cap, temperature, vocabulary_axis)
    dtype = jnp.result_type(hidden, unembedding)
    flat = hidden.reshape(-1, hidden.shape[-1]).astype(dtype)
    # Replicated operands are cast to varying here, outside the custom gradient: the transpose of the cast is the one
    # sum over devices.
    axes = _varying(flat, unembedding, targets, bias)
    flat, unembedding = _vary(flat, axes), _vary(unembedding.astype(dtype), axes)
    bias = None if bias is None else _vary(bias, axes)
    token_axes = axes - {vocabulary_axis}
    ids = _vary(targets.reshape(-1), token_axes)
    return _log_probs(options, flat, unembedding, bias, ids).reshape(targets.shape)


def _varying(*arrays: Array | None) -> frozenset[Any]:
    """The mesh axes of an enclosing shard_map over which any of the arrays differs; empty outside of one."""
    return frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays if array is not None))


def _vary(array: Array, axes: frozenset[Any]) -> Array:
    missing = tuple(axes - _varying(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def _walk(vocabulary: int, chunk: int, body: Any, carry: Any) -> Any:
    """Runs ``carry = body(start, size, carry)`` over slices of the vocabulary; the last may be smaller."""
    whole = vocabulary // chunk
    if whole == 1:
        carry = body(0, chunk, carry)
    elif whole > 1:
        carry = lax.fori_loop(0, whole, lambda i, c: body(i * chunk, chunk, c), carry)
    if vocabulary % chunk:
        carry = body(whole * chunk, vocabulary % chunk, carry)
    return carry


def _slice_logits(
    options: _Options, hidden: Array, unembedding: Array, bias: Array | None, start: Any, size: int
) -> tuple[Array, Array, Array | None]:
    """(slice of the unembedding, logits ``[size, T]``, slope of the soft cap ``[size, T]`` or None).

    Words before tokens: then the three products of the backward pass read their large operand along its rows, which
    is 7 % of the whole on a CPU.
    """
    rows = lax.dynamic_slice_in_dim(unembedding, start, size)
    z = lax.dot_general(rows, hidden, (((1,), (1,)), ((), ())), preferred_element_type=_accumulator(hidden))
    if bias is not None:
        z = z + lax.dynamic_slice_in_dim(bias, start, size).astype(z.dtype)[:, None]
    slope = None
    if options.soft_cap is not None:
        squashed = jnp.tanh(z / options.soft_cap)
        z, slope = options.soft_cap * squashed, 1 - jnp.square(squashed)
    if options.temperature != 1.0:
        z = z / options.temperature
    return rows, z, slope


def _accumulator(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _local_ids(options: _Options, targets: Array, size: int) -> Array:
    """Target ids counted from the start of this device's slice of the vocabulary (outside [0, size): another's)."""
    if options.vocabulary_axis is None:
        return jnp.clip(targets, 0, size - 1)
    devices = lax.axis_size(options.vocabulary_axis)
    start = lax.axis_index(options.vocabulary_axis) * size
    return jnp.clip(targets, 0, devices * size - 1) - start


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(options: _Options, hidden: Array, unembedding: Array, bias: Array | None, targets: Array) -> Array:
    return _forward(options, hidden, unembedding, bias, targets)[0]


def _forward(
    options: _Options, hidden: Array, unembedding: Array, bias: Array | None, targets: Array
) -> tuple[Array, tuple[Any, ...]]:
    size = unembedding.shape[0]
    dtype = _accumulator(hidden)
    ids = _local_ids(options, targets, size)
    axes = _varying(hidden)

    def body(start: Any, width: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, target = carry
        _, z, _ = _slice_logits(options, hidden, unembedding, bias, start, width)
        now = jnp.maximum(largest, jnp.max(z, axis=0))
        total = total * jnp.exp(largest - now) + jnp.sum(jnp.exp(z - now), axis=0)
        here = (ids >= start) & (ids < start + width)
        found = jnp.take_along_axis(z, jnp.clip(ids - start, 0, width - 1)[None], axis=0)[0]
        return now, total, jnp.where(here, found, target)

    empty = jnp.zeros(targets.shape, dtype)
    initial = tuple(_vary(x, axes) for x in (jnp.full(targets.shape, -jnp.inf, dtype), empty, empty))
    largest, total, target = _walk(size, options.chunk_size, body, initial)
    if options.vocabulary_axis is not None:
        everywhere = lax.pmax(largest, options.vocabulary_axis)
        total = lax.psum(total * jnp.exp(largest - everywhere), options.vocabulary_axis)
        target, largest = lax.psum(target, options.vocabulary_axis), everywhere
    normaliser = largest + jnp.log(total)
    return target - normaliser, (hidden, unembedding, bias, targets, normaliser)


def _backward(options: _Options, residuals: tuple[Any, ...], cotangent: Array) -> tuple[Any, ...]:
    hidden, unembedding, bias, targets, normaliser = residuals
    size = unembedding.shape[0]
    dtype = _accumulator(hidden)
    ids = _local_ids(options, targets, size)
    axes = _varying(hidden)
    weight = cotangent / options.temperature

    def body(start: Any, width: int, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_gradient, rows_gradient, bias_gradient = carry
        rows, z, slope = _slice_logits(options, hidden, unembedding, bias, start, width)
        is_target = (ids - start) == lax.broadcasted_iota(ids.dtype, z.shape, 0)
        d = (is_target - jnp.exp(z - normaliser)) * weight
        if slope is not None:
            d = d * slope
        if bias_gradient is not None:
            bias_gradient = lax.dynamic_update_slice_in_dim(bias_gradient, jnp.sum(d, axis=1), start, 0)
        d = d.astype(hidden.dtype)
        hidden_gradient = hidden_gradient + lax.dot_general(
            rows, d, (((0,), (0,)), ((), ())), preferred_element_type=dtype
        )
        update = lax.dot_general(d, hidden, (((1,), (0,)), ((), ())), preferred_element_type=dtype)
        rows_gradient = lax.dynamic_update_slice_in_dim(rows_gradient, update.astype(rows.dtype), start, 0)
        return hidden_gradient, rows_gradient, bias_gradient

    initial = (
        _vary(jnp.zeros(hidden.shape[::-1], dtype), axes),
        _vary(jnp.zeros(unembedding.shape, unembedding.dtype), axes),
        None if bias is None else _vary(jnp.zeros(bias.shape, dtype), axes),
    )
    hidden_gradient, rows_gradient, bias_gradient = _walk(size, options.chunk_size, body, initial)
    bias_gradient = None if bias is None else bias_gradient.astype(bias.dtype)
    return hidden_gradient.T.astype(hidden.dtype), rows_gradient, bias_gradient, None


_log_probs.defvjp(_forward, _backward)
