"""Best-of-N."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.sampling import Samples, best_of, best_of_n, best_of_n_kl_bound


def test_best_of_n_is_nested():
    scores = np.random.default_rng(0).normal(size=(50, 7))
    best = best_of_n(scores)
    for n in range(1, 8):
        np.testing.assert_array_equal(best[:, n - 1], scores[:, :n].argmax(1))
    chosen = np.take_along_axis(scores, best, 1)
    assert (np.diff(chosen, axis=1) >= 0).all()


def test_ties_go_to_the_earlier_sample():
    assert best_of_n([[1.0, 2.0, 2.0, 1.0]]).tolist() == [[0, 1, 1, 1]]


def test_scores_of_other_number_types():
    assert best_of_n(jnp.asarray([[0.0, 1.0]], jnp.bfloat16)).tolist() == [[0, 1]]
    assert best_of_n([[3, 1]]).tolist() == [[0, 0]]


def test_kl_bound():
    assert best_of_n_kl_bound(1) == 0
    assert best_of_n_kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    # The exact KL of best-of-2 over a uniform choice of m distinct scores tends to the bound from below.
    m = 2000
    best = (2 * np.arange(m) + 1) / m**2
    exact = (best * np.log(best * m)).sum()
    assert exact < best_of_n_kl_bound(2) < exact + 1e-3
    with pytest.raises(InputError, match="n must be at least 1"):
        best_of_n_kl_bound(0)


def make_samples(rows):
    tokens = np.arange(rows * 3).reshape(rows, 3)
    return Samples(tokens, np.ones((rows, 3), bool), np.zeros((rows, 3), np.float32), np.arange(rows) % 2 == 0)


def test_best_of_selects_prompt_major_rows():
    samples, scores = make_samples(6), [[0.0, 5.0, 9.0], [2.0, 1.0, 0.0]]
    assert best_of(samples, scores).tokens.tolist() == [[6, 7, 8], [9, 10, 11]]
    assert best_of(samples, scores, n=2).tokens.tolist() == [[3, 4, 5], [9, 10, 11]]
    assert best_of(samples, scores).finished.tolist() == [True, False]
    with pytest.raises(InputError, match=r"\[2, 3\] do not fit 4 samples"):
        best_of(make_samples(4), scores)
    with pytest.raises(InputError, match=r"n must be in 1\.\.3"):
        best_of(samples, scores, n=4)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, 2.0], r"shape \[prompts, samples\]"),
        (np.zeros((0, 3)), r"shape \[prompts, samples\]"),
        ([[1.0, 2.0], [0.0, float("nan")]], "prompt 1, sample 1 is not finite"),
        ([["a", "b"]], "real numbers"),
        ([[1.0, None]], "real numbers"),
        ([None, [1.0]], "score of prompt 0 is not a number: None"),
        ([[1.0], [1.0, 2.0]], "real numbers"),
    ],
)
def test_bad_scores(scores, message):
    with pytest.raises(InputError, match=message):
        best_of_n(scores)
