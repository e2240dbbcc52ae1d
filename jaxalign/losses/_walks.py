"""The walks over the vocabulary behind ``fused_token_log_probs``: one slice of words at a time.

Shapes: hidden ``[T, D]``, unembedding ``[V, D]``, bias ``[V]`` or None, targets ``[T]``; logits are ``[words, T]``.
Words stand before tokens because then the products of the gradient read their large operand along its rows, which is
7 % of the whole on a CPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Carry = tuple[Any, ...]


class Options(NamedTuple):
    """What is fixed at trace time."""

    chunk_size: int
    soft_cap: float | None
    temperature: float
    vocabulary_axis: str | None


class Slice(NamedTuple):
    """A slice of the vocabulary: its rows, its logits, and where the targets stand in it."""

    start: Any  # the first word
    rows: Array  # [words, D]
    logits: Array  # [words, T]: biased, capped, divided by the temperature
    slope: Array | None  # [words, T]: the soft cap's derivative; None is 1
    place: Array  # int [T]: the target's place in the slice; outside [0, words) it is in another

    def is_target(self) -> Array:
        """bool ``[words, T]``."""
        return self.place == lax.broadcasted_iota(self.place.dtype, self.logits.shape, 0)

    def at_target(self, values: Array) -> Array:
        """The entries ``[T]`` of ``values [words, T]`` at the targets; 0 where the target is in another slice."""
        words = values.shape[0]
        found = jnp.take_along_axis(values, jnp.clip(self.place, 0, words - 1)[None], axis=0)[0]
        return jnp.where((self.place >= 0) & (self.place < words), found, 0)


def varying_axes(*arrays: Array | None) -> frozenset[Any]:
    """The mesh axes of an enclosing shard_map over which any of the arrays differs; empty outside of one."""
    return frozenset().union(*(jax.typeof(array).manual_axis_type.varying for array in arrays if array is not None))


def vary(array: Array, axes: frozenset[Any]) -> Array:
    """Marks a replicated array as differing over the axes; the transpose sums over them."""
    missing = tuple(axes - varying_axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def log_prob_walk(
    options: Options, hidden: Array, unembedding: Array, bias: Array | None, targets: Array
) -> tuple[Array, Array]:
    """(log-probabilities of the targets ``[T]``, logsumexp of the logits ``[T]``)."""

    def body(part: Slice, carry: Carry) -> Carry:
        largest, total, target = carry
        now = jnp.maximum(largest, jnp.max(part.logits, axis=0))
        total = total * jnp.exp(largest - now) + jnp.sum(jnp.exp(part.logits - now), axis=0)
        return now, total, target + part.at_target(part.logits)

    zeros = jnp.zeros(targets.shape, _accumulator(hidden))
    largest, total, target = _walk(
        options, hidden, unembedding, bias, targets, body, (zeros + _smallest(zeros), zeros, zeros)
    )
    if options.vocabulary_axis is not None:
        everywhere = lax.pmax(largest, options.vocabulary_axis)
        total = lax.psum(total * jnp.exp(largest - everywhere), options.vocabulary_axis)
        target, largest = lax.psum(target, options.vocabulary_axis), everywhere
    normaliser = largest + jnp.log(total)
    return target - normaliser, normaliser


def direction_walk(
    options: Options, hidden: Array, unembedding: Array, bias: Array | None, targets: Array
) -> tuple[Array, Array]:
    """(log-probabilities ``[T]``, their gradients with respect to their own hidden states ``[T, D]``).

        (1 - p_target) slope_target row_target - sum_{v != target} p_v slope_v row_v        over the temperature

    The target is left out of the running sums, so that nothing cancels when it is almost certain. With the vocabulary
    sharded the gradient is this device's share of the sum over words.
    """

    def body(part: Slice, carry: Carry) -> Carry:
        largest, others, mixture, target, slope = carry
        now = jnp.maximum(largest, jnp.max(part.logits, axis=0))
        scale = jnp.exp(largest - now)
        exponentials = jnp.where(part.is_target(), 0, jnp.exp(part.logits - now))
        others = others * scale + jnp.sum(exponentials, axis=0)
        if part.slope is not None:
            exponentials = exponentials * part.slope
            slope = slope + part.at_target(part.slope)
        mixture = mixture * scale + _mix(part.rows, exponentials.astype(hidden.dtype))
        return now, others, mixture, target + part.at_target(part.logits), slope

    zeros = jnp.zeros(targets.shape, _accumulator(hidden))
    mixture = jnp.zeros(hidden.shape[::-1], zeros.dtype)
    carry = (zeros + _smallest(zeros), zeros, mixture, zeros, zeros)
    largest, others, mixture, target, slope = _walk(options, hidden, unembedding, bias, targets, body, carry)
    ids = _local_ids(options, targets, unembedding.shape[0])
    here = (ids >= 0) & (ids < unembedding.shape[0])
    if options.vocabulary_axis is not None:
        everywhere = lax.pmax(largest, options.vocabulary_axis)
        scale = jnp.exp(largest - everywhere)
        others = lax.psum(others * scale, options.vocabulary_axis)
        target, largest, mixture = lax.psum(target, options.vocabulary_axis), everywhere, mixture * scale
    total = others + jnp.exp(target - largest)
    weight = jnp.where(here, others / total, 0)
    if options.soft_cap is not None:
        weight = weight * slope
    rows = jnp.take(unembedding, ids, axis=0, mode="clip")
    direction = weight[:, None] * rows - (mixture / total).T
    return target - largest - jnp.log(total), direction / options.temperature


def gradient_walk(
    options: Options,
    hidden: Array,
    unembedding: Array,
    bias: Array | None,
    targets: Array,
    normaliser: Array,
    cotangent: Array,
) -> tuple[Array, Array, Array | None]:
    """Gradients of ``sum(cotangent * log_probs)`` with respect to hidden, unembedding and bias.

    The logits are made again. With the vocabulary sharded the hidden gradient is this device's share.
    """
    dtype = _accumulator(hidden)
    weight = cotangent / options.temperature

    def body(part: Slice, carry: Carry) -> Carry:
        hidden_gradient, rows_gradient, bias_gradient = carry
        d = (part.is_target() - jnp.exp(part.logits - normaliser)) * weight
        if part.slope is not None:
            d = d * part.slope
        if bias_gradient is not None:
            bias_gradient = lax.dynamic_update_slice_in_dim(bias_gradient, jnp.sum(d, axis=1), part.start, 0)
        d = d.astype(hidden.dtype)
        update = lax.dot(d, hidden, preferred_element_type=dtype).astype(unembedding.dtype)
        rows_gradient = lax.dynamic_update_slice_in_dim(rows_gradient, update, part.start, 0)
        return hidden_gradient + _mix(part.rows, d), rows_gradient, bias_gradient

    carry = (
        jnp.zeros(hidden.shape[::-1], dtype),
        jnp.zeros_like(unembedding),
        None if bias is None else jnp.zeros(bias.shape, dtype),
    )
    hidden_gradient, rows_gradient, bias_gradient = _walk(options, hidden, unembedding, bias, targets, body, carry)
    if bias is not None:
        bias_gradient = bias_gradient.astype(bias.dtype)
    return hidden_gradient.T.astype(hidden.dtype), rows_gradient, bias_gradient


def _walk(
    options: Options,
    hidden: Array,
    unembedding: Array,
    bias: Array | None,
    targets: Array,
    body: Callable[[Slice, Carry], Carry],
    carry: Carry,
) -> Carry:
    """Runs ``carry = body(slice, carry)`` over the vocabulary; the last slice may be smaller."""
    vocabulary, size = unembedding.shape[0], options.chunk_size
    ids = _local_ids(options, targets, vocabulary)
    whole = vocabulary // size

    def step(start: Any, words: int, carry: Carry) -> Carry:
        return body(_slice(options, hidden, unembedding, bias, ids, start, words), carry)

    axes = varying_axes(hidden)
    carry = jax.tree.map(lambda array: vary(array, axes), carry)
    carry = lax.fori_loop(0, whole, lambda i, carry: step(i * size, size, carry), carry)
    if vocabulary % size:
        carry = step(whole * size, vocabulary % size, carry)
    return carry


def _slice(
    options: Options, hidden: Array, unembedding: Array, bias: Array | None, ids: Array, start: Any, words: int
) -> Slice:
    rows = lax.dynamic_slice_in_dim(unembedding, start, words)
    z = lax.dot_general(rows, hidden, (((1,), (1,)), ((), ())), preferred_element_type=_accumulator(hidden))
    if bias is not None:
        z = z + lax.dynamic_slice_in_dim(bias, start, words).astype(z.dtype)[:, None]
    slope = None
    if options.soft_cap is not None:
        squashed = jnp.tanh(z / options.soft_cap)
        z, slope = options.soft_cap * squashed, 1 - jnp.square(squashed)
    if options.temperature != 1.0:
        z = z / options.temperature
    return Slice(start, rows, z, slope, ids - start)


def _mix(rows: Array, weights: Array) -> Array:
    """``rows [words, D]`` weighted by ``weights [words, T]`` and summed over words: ``[D, T]``."""
    return lax.dot_general(rows, weights, (((0,), (0,)), ((), ())), preferred_element_type=_accumulator(rows))


def _accumulator(array: Array) -> Any:
    return jnp.promote_types(array.dtype, jnp.float32)


def _smallest(array: Array) -> Any:
    """Where a running maximum starts. Not at -inf: a slice may be all -inf (padded words), and -inf - -inf is NaN."""
    return jnp.finfo(array.dtype).min


def _local_ids(options: Options, targets: Array, size: int) -> Array:
    """Target ids counted from the start of this device's part of the vocabulary; outside [0, size): another's."""
    if options.vocabulary_axis is None:
        return jnp.clip(targets, 0, size - 1)
    devices = lax.axis_size(options.vocabulary_axis)
    return jnp.clip(targets, 0, devices * size - 1) - lax.axis_index(options.vocabulary_axis) * size
