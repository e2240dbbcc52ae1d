"""Intervals: what they are on known data, and that they cover as often as they say."""

import numpy as np
import pytest

from jaxalign.evaluation import Interval, bootstrap_interval, paired_bootstrap_difference
from tests.tolerances import COVERAGE, COVERAGE_SKEWED, FLOAT64


def coverage(draw, truth: float, *, datasets: int = 1000, **options) -> float:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(datasets):
        interval = bootstrap_interval(draw(generator), resamples=500, seed=seed, **options)
        hits += interval.low <= truth <= interval.high
    return hits / datasets


def test_normal_data_are_covered():
    assert abs(coverage(lambda g: g.normal(3.0, 2.0, 12), 3.0) - 0.95) < COVERAGE


def test_skewed_data_are_covered():
    assert abs(coverage(lambda g: g.exponential(1.0, 40), 1.0) - 0.95) < COVERAGE_SKEWED


def test_groups_are_resampled_as_a_whole():
    """Four samples of a prompt share its mean: ignoring that covers far too rarely, resampling prompts does not."""

    def draw(generator):
        return (generator.normal(size=(30, 1)) + 0.1 * generator.normal(size=(30, 4))).ravel()

    grouped = coverage(draw, 0.0, groups=np.repeat(np.arange(30), 4))
    assert abs(grouped - 0.95) < COVERAGE
    assert coverage(draw, 0.0) < 0.75


def test_the_width_is_that_of_the_t_interval():
    values = np.random.default_rng(1).normal(size=400)
    interval = bootstrap_interval(values, resamples=20_000)
    half = 1.966 * values.std(ddof=1) / 20
    assert interval.estimate == pytest.approx(values.mean(), abs=FLOAT64)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_same_seed_same_interval_and_group_labels_do_not_matter():
    values = np.random.default_rng(2).normal(size=40)
    groups = np.repeat(np.arange(10), 4)
    first = bootstrap_interval(values, groups=groups, seed=3)
    assert first == bootstrap_interval(values, groups=[f"prompt {g}" for g in groups], seed=3)
    assert first != bootstrap_interval(values, groups=groups, seed=4)


def test_unequal_groups_keep_the_mean_over_values():
    interval = bootstrap_interval([1.0, 1.0, 1.0, 5.0], groups=[0, 0, 0, 1])
    assert interval.estimate == 2.0
    assert (interval.low, interval.high) == (1.0, 5.0)


def test_pairing_removes_what_prompts_share():
    generator = np.random.default_rng(0)
    easy = generator.normal(0.0, 10.0, 200)
    a, b = easy + 1.0 + 0.1 * generator.normal(size=200), easy
    paired = paired_bootstrap_difference(a, b)
    assert 0.9 < paired.low < paired.estimate < paired.high < 1.1
    assert paired.estimate == pytest.approx((a - b).mean(), abs=FLOAT64)


def test_constant_values_have_no_width():
    assert bootstrap_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert str(Interval(2.0, 1.5, 2.25)) == "2.000 [1.500, 2.250]"


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.0], {}, "at least two"),
        ([1.0, 2.0], {"groups": [0, 0]}, "at least two"),
        ([1.0, float("nan")], {}, "finite"),
        ([1.0, 2.0], {"groups": [0, 1, 2]}, "groups have shape"),
        ([1.0, 2.0], {"level": 1.0}, "level"),
    ],
)
def test_bad_input_is_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)


def test_pairs_need_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap_difference([1.0, 2.0], [1.0])
