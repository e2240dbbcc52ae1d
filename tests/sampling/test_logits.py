"""Truncation and the two-level draw, against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.sampling._logits import BLOCK, draw, draw_token, greedy_token, next_token, truncate_logits, uniforms
from tests.tolerances import FLOAT32


def nucleus(probabilities, top_p):
    """The definition: walk down the sorted tokens until their mass reaches top_p."""
    order = np.argsort(-probabilities, kind="stable")
    count = np.searchsorted(np.cumsum(probabilities[order]), top_p) + 1
    return set(order[:count].tolist())


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("traced", [False, True])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p, traced):
    logits = 3 * jax.random.normal(jax.random.key(0), (5, 1000))
    function = (
        jax.jit(lambda p: truncate_logits(logits, top_p=p)) if traced else lambda p: truncate_logits(logits, top_p=p)
    )
    kept = np.asarray(function(top_p))
    for row, row_logits in zip(kept, np.asarray(logits, np.float64), strict=True):
        probabilities = np.exp(row_logits) / np.exp(row_logits).sum()
        assert set(np.flatnonzero(np.isfinite(row)).tolist()) == nucleus(probabilities, top_p)


def test_top_p_keeps_ties_and_min_p_compares_with_the_most_probable():
    logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.15, 0.05]]))
    assert np.isfinite(truncate_logits(logits, top_p=0.5)).tolist() == [[True, True, True, False, False]]
    assert np.isfinite(truncate_logits(logits, min_p=0.45)).tolist() == [[True, True, True, False, False]]
    assert np.isfinite(truncate_logits(logits, min_p=0.3)).tolist() == [[True, True, True, True, False]]
    assert truncate_logits(logits) is logits  # off costs nothing


def test_min_p_acts_on_what_top_p_leaves():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.1, 0.1]]))
    assert np.isfinite(truncate_logits(logits, top_p=0.75, min_p=0.7)).tolist() == [[True, False, False, False]]


def test_draw_inverts_the_cumulative_distribution():
    weights = jnp.asarray([[0.0, 1.0, 0.0, 3.0, 0.0]])
    for uniform, index in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.999999, 3)):
        assert draw(weights, jnp.asarray([uniform])).tolist() == [index]


def test_draw_never_takes_an_excluded_token():
    largest = np.nextafter(np.float32(1), np.float32(0))
    weights = np.zeros((2000, 300), np.float32)
    weights[:, :299:2] = np.random.default_rng(0).random((2000, 150)).astype(np.float32) ** 8
    for uniform in (0.0, largest):
        index = np.asarray(draw(jnp.asarray(weights), jnp.full(2000, uniform)))
        assert (weights[np.arange(2000), index] > 0).all()


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
def test_two_level_draw_follows_the_distribution(vocabulary):
    rows = 40_000
    logits = 2 * jax.random.normal(jax.random.key(vocabulary), (vocabulary,))
    uniform = jax.random.uniform(jax.random.key(1), (2, rows))
    centred = logits - logits.max()
    token = jax.jit(draw_token)(jnp.broadcast_to(centred[:, None], (vocabulary, rows)), uniform)
    counts = np.bincount(np.asarray(token), minlength=vocabulary)
    assert counts.size == vocabulary
    expected = np.asarray(jax.nn.softmax(logits)) * rows
    frequent = expected > 20
    chi_square = ((counts - expected) ** 2 / expected)[frequent].sum()
    degrees = frequent.sum()
    # Mean `degrees`, standard deviation sqrt(2 degrees): six deviations.
    assert chi_square < degrees + 6 * np.sqrt(2 * degrees) + 6
    assert abs(counts[~frequent].sum() - expected[~frequent].sum()) <= 6 * np.sqrt(expected[~frequent].sum() + 1)


def test_greedy_takes_the_first_largest_logit():
    logits = jax.random.normal(jax.random.key(0), (7, 3 * BLOCK - 7))
    logits = logits.at[:, [5, 300, 600]].set(9.0)  # a tie across blocks
    assert greedy_token(logits.T).tolist() == [5] * 7
    logits = jax.random.normal(jax.random.key(1), (7, 3 * BLOCK - 7))
    assert greedy_token(logits.T).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}, {"greedy": True}])
@pytest.mark.parametrize("temperature", [1e-30, 0.3, 1.0, 4.0])
def test_log_prob_is_of_the_untruncated_distribution(settings, temperature):
    settings = {"greedy": False, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    logits = 5 * jax.random.normal(jax.random.key(0), (400, 6))
    token, log_prob = next_token(
        logits, jax.random.uniform(jax.random.key(1), (2, 6)), jnp.float32(temperature), **settings
    )
    scale = 1.0 if settings["greedy"] else temperature
    wanted = np.asarray(jax.nn.log_softmax((logits - logits.max(0)) / scale, axis=0))[np.asarray(token), np.arange(6)]
    np.testing.assert_allclose(log_prob, wanted, rtol=FLOAT32, atol=FLOAT32)


def test_uniforms_depend_on_seed_sample_and_step_alone():
    key = jax.random.key(3)
    whole = uniforms(key, jnp.asarray([0, 0, 1, 7, 7]), jnp.asarray([0, 1, 0, 2, 2]), jnp.asarray([4, 0, 3, 2, 1]))
    part = uniforms(key, jnp.asarray([7, 0]), jnp.asarray([2, 1]), jnp.asarray([2, 0]))
    assert whole.shape == (2, 5)
    np.testing.assert_array_equal(part, np.asarray(whole)[:, [3, 1]])
    assert len(np.unique(np.asarray(whole))) == whole.size
