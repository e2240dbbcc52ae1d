"""Static checks and the promotion rule that every loss starts with."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def as_scores(*arrays: Any) -> tuple[Array, ...]:
    """Checks that all arrays are floating and of one shape; returns them in one dtype, at least float32.

    bfloat16 and float16 become float32; float64 stays float64. Integers are refused, because a reward cast to int
    trains on nothing and says nothing.
    """
    arrays = tuple(jnp.asarray(array) for array in arrays)
    chex.assert_type(arrays, float)
    chex.assert_equal_shape(arrays)
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def as_mask(mask: Any, like: Array) -> Array:
    """Checks that ``mask`` is boolean and shaped like ``like``: a mask of counts or weights is a mistake here."""
    mask = jnp.asarray(mask)
    chex.assert_type(mask, bool)
    chex.assert_equal_shape((mask, like))
    return mask


def positive(**values: Any) -> None:
    """Raises ValueError for a hyper-parameter that is a plain number and not above 0 (traced values pass)."""
    for name, value in values.items():
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def in_range(low: float, high: float, *, open_low: bool = False, open_high: bool = False, **values: Any) -> None:
    """Raises ValueError for a plain number outside [low, high] (or with an end left out)."""
    for name, value in values.items():
        if not isinstance(value, int | float):
            continue
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if not (above and below):
            interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
            raise ValueError(f"{name} must lie in {interval}, not {value}")
