"""Chain of Hindsight: outputs alone are learnt; what is forgotten depends on the example alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses import chain_of_hindsight, forgetful_causal_mask
from tests.tolerances import FLOAT64

KEY = jax.random.key(0)
BELOW = np.tril(np.ones((64, 64), bool), -1) & (np.arange(64) > 0)  # what may be dropped


def mask(batch, length, low=0.0, high=0.5, key=KEY, **ids):
    return np.asarray(forgetful_causal_mask(key, batch, length, min_ratio=low, max_ratio=high, **ids))


def test_only_outputs_are_learnt():
    log_probs = np.array([[-1.0, -2.0, -0.5, np.nan], [-3.0, -np.inf, -0.25, -1.5]])
    outputs = np.array([[False, True, True, False], [True, False, False, True]])
    wanted = [[0, 2, 0.5, 0], [3, 0, 0, 1.5]]
    with jax.enable_x64(True):
        np.testing.assert_allclose(chain_of_hindsight(log_probs, outputs), wanted, atol=FLOAT64)
        gradient = jax.grad(lambda x: chain_of_hindsight(x, outputs).sum())(log_probs)
    np.testing.assert_array_equal(gradient, -outputs.astype(float))
    assert chain_of_hindsight(jnp.asarray([-1.0], jnp.bfloat16), np.array([True])).dtype == jnp.float32
    with pytest.raises(AssertionError):
        chain_of_hindsight(log_probs, outputs.astype(np.int32))


@pytest.mark.parametrize("ratio", [0.02, 0.15, 0.6])
def test_the_drop_rate(ratio):
    """Within five standard deviations of a binomial share, pairs being independent."""
    dropped = ~mask(16, 64, ratio, ratio)[:, BELOW]
    assert abs(dropped.mean() - ratio) < 5 * np.sqrt(ratio * (1 - ratio) / dropped.size)
    rates = dropped.mean(axis=0)  # of each pair, over examples: no pair is special
    assert rates.std() < 1.2 * np.sqrt(ratio * (1 - ratio) / 16)


def test_each_example_has_its_ratio():
    rates = (~mask(256, 64, 0.1, 0.3)[:, BELOW]).mean(axis=1)
    noise = np.sqrt(0.3 * 0.7 / BELOW.sum())
    assert 0.1 - 5 * noise < rates.min() < 0.12
    assert 0.28 < rates.max() < 0.3 + 5 * noise
    assert abs(rates.mean() - 0.2) < 5 * 0.2 / np.sqrt(12 * 256)


def test_what_is_always_and_what_is_never_visible():
    found = mask(8, 64, 1.0, 1.0)
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(64, dtype=bool) | (np.arange(64) == 0), found.shape)
                                  & np.tril(np.ones((64, 64), bool)))  # fmt: skip
    assert not mask(8, 64)[:, ~np.tril(np.ones((64, 64), bool))].any()
    np.testing.assert_array_equal(mask(2, 64, 0, 0), np.broadcast_to(np.tril(np.ones((64, 64), bool)), (2, 64, 64)))


def test_another_key_forgets_something_else():
    assert (mask(2, 32) != mask(2, 32, key=jax.random.key(1))).any()
    assert (mask(2, 32)[0] != mask(2, 32)[1]).any()


def test_micro_batches_and_padding_change_nothing():
    ids = np.array([7, 3, 900, 12])
    whole = mask(4, 24, example_ids=ids)
    for rows in ([0, 1], [2, 3], [3, 0]):
        np.testing.assert_array_equal(mask(2, 24, example_ids=ids[rows]), whole[rows])
    np.testing.assert_array_equal(mask(4, 40, example_ids=ids)[:, :24, :24], whole)
    jitted = jax.jit(lambda ids: forgetful_causal_mask(KEY, 4, 24, min_ratio=0.0, max_ratio=0.5, example_ids=ids))
    np.testing.assert_array_equal(jitted(ids), whole)


def test_packing_changes_nothing():
    """Three examples in one row, behind one another, are what each is alone; none sees another."""
    lengths, ids = [9, 14, 6], np.array([5, 2, 8])
    segments = np.repeat([1, 2, 3, 0], [*lengths, 3])[None]
    packed = mask(1, 32, example_ids=np.repeat([*ids, 0], [*lengths, 3])[None], segment_ids=segments)[0]
    start = 0
    for length, example in zip(lengths, ids, strict=True):
        own = slice(start, start + length)
        np.testing.assert_array_equal(packed[own, own], mask(1, length, example_ids=np.array([example]))[0])
        assert not packed[own, :start].any()
        assert not packed[own, start + length :].any()
        start += length


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.0, 1.5), (0.4, 0.2)])
def test_ratios_that_are_none(low, high):
    with pytest.raises(ValueError, match="ratio"):
        mask(1, 4, low, high)


def test_ids_that_are_none():
    with pytest.raises(AssertionError):
        mask(2, 4, example_ids=np.zeros(3, int))
    with pytest.raises(AssertionError):
        mask(2, 4, segment_ids=np.zeros((2, 4)))
