"""Win rates at equal length: against scikit-learn, the truth of simulated judges, and symmetry."""

import numpy as np
import pytest
from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation import length_controlled_win_rate, win_rate
from tests.tolerances import COVERAGE_SKEWED, FLOAT32, FLOAT64

SWAPPED = {"win": "lose", "lose": "win", "tie": "tie", "invalid": "invalid"}


def judged(generator, count, *, theta=0.4, phi=1.5, longer=40.0):
    """Outcomes of a judge that likes length, and the lengths: ours is mostly the longer."""
    ours, theirs = generator.normal(200 + longer, 40, count), generator.normal(200, 40, count)
    feature = np.tanh((ours - theirs) / (ours - theirs).std())
    won = generator.random(count) < special.expit(theta + phi * feature)
    return ["win" if one else "lose" for one in won], ours, theirs


def test_it_is_scikit_learns_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    outcomes, ours, theirs = judged(np.random.default_rng(0), 150)
    feature = np.tanh((ours - theirs) / (ours - theirs).std())
    # Their penalty is 1/2 phi^2 + C * summed log loss, their intercept is free: C = 1 / ridge.
    model = linear_model.LogisticRegression(C=1 / 0.1, tol=1e-10, max_iter=10_000)
    model.fit(feature[:, None], [outcome == "win" for outcome in outcomes])
    found = length_controlled_win_rate(outcomes, ours, theirs, ridge=0.1, resamples=50)
    assert found.estimate == pytest.approx(special.expit(model.intercept_[0]), abs=FLOAT32)
    assert found.low < found.estimate < found.high


def test_it_finds_the_rate_at_equal_length_where_the_plain_rate_is_far_off():
    outcomes, ours, theirs = judged(np.random.default_rng(1), 4000, theta=-0.3, longer=80.0)
    truth = special.expit(-0.3)
    found = length_controlled_win_rate(outcomes, ours, theirs, resamples=200)
    assert found.low < truth < found.high
    assert win_rate(outcomes, resamples=50).wilson.low > 0.6 > truth


def test_its_interval_covers():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(300):
        found = length_controlled_win_rate(*judged(generator, 120), resamples=200, seed=seed)
        hits += found.low <= special.expit(0.4) <= found.high
    assert abs(hits / 300 - 0.95) < COVERAGE_SKEWED


def test_swapping_sides_mirrors_it():
    outcomes, ours, theirs = judged(np.random.default_rng(3), 60)
    outcomes[:8] = ["tie"] * 5 + ["invalid"] * 3
    one = length_controlled_win_rate(outcomes, ours, theirs, resamples=100)
    other = length_controlled_win_rate([SWAPPED[word] for word in outcomes], theirs, ours, resamples=100)
    assert one.estimate == pytest.approx(1 - other.estimate, abs=FLOAT64)
    assert (one.low, one.high) == (
        pytest.approx(1 - other.high, abs=FLOAT64),
        pytest.approx(1 - other.low, abs=FLOAT64),
    )


def test_equal_lengths_leave_the_plain_rate():
    outcomes = ["win"] * 5 + ["tie"] * 2 + ["lose"] * 3
    found = length_controlled_win_rate(outcomes, [7] * 10, [7] * 10)
    plain = win_rate(outcomes, resamples=2000)
    assert found.estimate == pytest.approx(plain.rate, abs=FLOAT64)
    assert (found.low, found.high) == (pytest.approx(plain.bootstrap.low), pytest.approx(plain.bootstrap.high))


def test_lengths_that_part_wins_from_losses_stay_finite():
    """The longer always wins: nothing is left that speaks for either at equal length."""
    found = length_controlled_win_rate(["win"] * 4 + ["lose"] * 4, [30, 31, 32, 33, 10, 11, 12, 13], [20] * 8)
    assert 0.3 < found.estimate < 0.7
    assert np.isfinite([found.low, found.high]).all()


def test_one_sided_outcomes_are_one_or_zero():
    lengths = [3, 5, 4], [4, 4, 4]
    assert length_controlled_win_rate(["win"] * 3, *lengths).estimate == 1.0
    assert length_controlled_win_rate(["lose"] * 3, *lengths).high == 0.0
    assert length_controlled_win_rate(["tie"] * 3, *lengths).estimate == pytest.approx(0.5, abs=FLOAT64)


def test_prompts_are_resampled_as_a_whole():
    outcomes, ours, theirs = judged(np.random.default_rng(4), 60)
    four = [value for value in outcomes for _ in range(4)], np.repeat(ours, 4), np.repeat(theirs, 4)
    # The penalty weighs less against four times the data.
    once = length_controlled_win_rate(outcomes, ours, theirs, ridge=0.0)
    grouped = length_controlled_win_rate(*four, ridge=0.0, groups=np.repeat(np.arange(60), 4).tolist())
    assert grouped.estimate == pytest.approx(once.estimate, abs=FLOAT64)
    assert (grouped.low, grouped.high) == (pytest.approx(once.low, abs=FLOAT64), pytest.approx(once.high, abs=FLOAT64))


@pytest.mark.parametrize(
    ("outcomes", "ours", "theirs", "message"),
    [
        ([], [], [], "at least two judged prompts, got 0"),
        (["win"], [1], [2], "at least two judged prompts, got 1"),
        (["win", "lose"], [1, 2], [1], "two finite lengths an outcome, got 2 and 1 for 2"),
        (["win", "lose"], [1, np.inf], [1, 2], "finite"),
        (["win", "lose"], [4, 5], [1, 2], "differs in length by 3: length and quality cannot be told apart"),
    ],
)
def test_what_cannot_be_fitted_is_one_clear_error(outcomes, ours, theirs, message):
    with pytest.raises(InputError, match=message):
        length_controlled_win_rate(outcomes, ours, theirs)
