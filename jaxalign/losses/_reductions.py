"""Masked reductions: boolean masks, at least float32, and 0 with finite gradients for an empty mask."""

import jax
import jax.numpy as jnp

from jaxalign.losses._checks import as_mask, as_scores

Array = jax.Array
Axis = int | tuple[int, ...] | None


def masked_sum(x: Array, mask: Array, *, axis: Axis = None) -> Array:
    """Sum of the entries that the mask keeps.

        sum_i mask_i x_i

    Args:
      x: floating, any shape.
      mask: bool, the shape of ``x``. What lies under a False entry, NaN included, reaches neither value nor gradient.
      axis: the axes to reduce, all of them by default.

    Returns:
      At least float32 (float64 stays float64); 0 for an empty mask.
    """
    (x,) = as_scores(x)
    mask = as_mask(mask, x)
    return jnp.sum(jnp.where(mask, x, 0), axis=axis)


def masked_mean(x: Array, mask: Array, *, axis: Axis = None) -> Array:
    """Mean of the entries that the mask keeps: sum_i mask_i x_i / sum_i mask_i, and 0 for an empty mask.

    Args and returns as in :func:`masked_sum`.
    """
    total = masked_sum(x, mask, axis=axis)
    count = jnp.sum(mask, axis=axis, dtype=total.dtype)
    return total / jnp.maximum(count, 1)


def masked_var(x: Array, mask: Array, *, axis: Axis = None) -> Array:
    """Unbiased variance of the entries that the mask keeps.

        sum_i mask_i (x_i - mean)^2 / (n - 1),    n = sum_i mask_i

    One entry, or none, gives 0 (not 0/0). Two passes: the mean is subtracted before squaring. Args and returns as in
    :func:`masked_sum`.
    """
    (x,) = as_scores(x)
    mask = as_mask(mask, x)
    count = jnp.sum(mask, axis=axis, keepdims=True, dtype=x.dtype)
    values = jnp.where(mask, x, 0)
    mean = jnp.sum(values, axis=axis, keepdims=True) / jnp.maximum(count, 1)
    squares = jnp.where(mask, jnp.square(values - mean), 0)
    variance = jnp.sum(squares, axis=axis, keepdims=True) / jnp.maximum(count - 1, 1)
    return jnp.squeeze(variance, axis=axis)


def whiten(x: Array, mask: Array, *, shift_mean: bool = True) -> Array:
    """Scales the kept entries to unit variance, over the whole array.

        (x - mean) / sqrt(var + 1e-8)        plus the mean again with ``shift_mean=False``

    Mean and unbiased variance are masked and global: give the whole batch. Where the mask is False the result is 0. A
    single kept entry has variance 0 and becomes 0 (the mean, with ``shift_mean=False``).

    Args:
      x: floating, any shape.
      mask: bool, the shape of ``x``.
      shift_mean: True subtracts the mean (advantages), False keeps it (rewards).
    """
    (x,) = as_scores(x)
    mask = as_mask(mask, x)
    mean = masked_mean(x, mask)
    whitened = (jnp.where(mask, x, mean) - mean) * jax.lax.rsqrt(masked_var(x, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return jnp.where(mask, whitened, 0)
