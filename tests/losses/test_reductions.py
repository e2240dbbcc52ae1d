"""Masked reductions: a mask is a slice, empty masks give 0, one element has no variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.losses import masked_mean, masked_sum, masked_var, whiten
from tests.tolerances import FLOAT32, FLOAT64

REDUCTIONS = [masked_sum, masked_mean, masked_var]
values = arrays(np.float32, 8, elements=st.floats(-100, 100, width=32))
masks = arrays(np.bool_, 8)
few = settings(max_examples=40, deadline=None)


@given(values, masks)
@few
def test_mask_is_a_slice(x: np.ndarray, mask: np.ndarray) -> None:
    kept = x[mask].astype(np.float64)
    with jax.enable_x64(True):
        full = jnp.asarray(x, jnp.float64)
        np.testing.assert_allclose(masked_sum(full, mask), kept.sum(), rtol=FLOAT64, atol=FLOAT64)
        np.testing.assert_allclose(masked_mean(full, mask), kept.mean() if kept.size else 0, rtol=FLOAT64, atol=FLOAT64)
        expected = kept.var(ddof=1) if kept.size > 1 else 0
        np.testing.assert_allclose(masked_var(full, mask), expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_axis_is_row_by_row(reduction) -> None:
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=(3, 5)).astype(np.float32), rng.random((3, 5)) < 0.6
    rows = [reduction(x[i], mask[i]) for i in range(3)]
    np.testing.assert_allclose(reduction(x, mask, axis=-1), rows, rtol=FLOAT32)
    assert reduction(x, mask, axis=(0, 1)).shape == ()


@pytest.mark.parametrize("reduction", [*REDUCTIONS, whiten])
@pytest.mark.parametrize("kept", [0, 1])
def test_empty_and_single_masks_have_finite_gradients(reduction, kept: int) -> None:
    x = jnp.asarray([3.0, jnp.nan, jnp.inf, -1e30])
    mask = jnp.arange(4) < kept
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(reduction(x, mask)))(x)
    assert value == (3.0 if kept and reduction in (masked_sum, masked_mean) else 0.0)
    assert jnp.isfinite(gradient).all()
    assert not gradient[kept:].any()


@given(values, masks, st.booleans())
@few
def test_whiten(x: np.ndarray, mask: np.ndarray, shift_mean: bool) -> None:
    result = np.asarray(whiten(x, mask, shift_mean=shift_mean))
    assert not result[~mask].any()
    kept = x[mask].astype(np.float64)
    if kept.size > 1 and kept.std() > 0.1:
        assert np.std(result[mask], ddof=1) == pytest.approx(1, abs=1e-4)
        assert np.mean(result[mask]) == pytest.approx(0 if shift_mean else kept.mean(), abs=1e-3)


def test_dtypes() -> None:
    mask = jnp.ones(3, bool)
    for reduction in [*REDUCTIONS, whiten]:
        assert reduction(jnp.ones(3, jnp.bfloat16), mask).dtype == jnp.float32
        with jax.enable_x64(True):
            assert reduction(jnp.ones(3, jnp.float64), mask).dtype == jnp.float64
        with pytest.raises(AssertionError):
            reduction(jnp.ones(3), jnp.ones(3))
        with pytest.raises(AssertionError):
            reduction(jnp.ones(3, jnp.int32), mask)


def test_sum_of_many_bfloat16_is_not_a_bfloat16_sum() -> None:
    x = jnp.full(4096, 0.1, jnp.bfloat16)
    expected = 4096 * float(x[0])
    assert masked_sum(x, jnp.ones(4096, bool)) == pytest.approx(expected, rel=FLOAT32)
