"""Win rates: counts and rates by hand, intervals by simulation, symmetry, tests against scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxalign.errors import InputError
from jaxalign.evaluation import paired_test, paired_tests, wilson_interval, win_rate
from tests.tolerances import COVERAGE, COVERAGE_SKEWED, FLOAT64

SWAPPED = {"win": "lose", "lose": "win", "tie": "tie", "invalid": "invalid"}
OUTCOMES = st.lists(st.sampled_from(list(SWAPPED)), max_size=30)
EIGHT = ["win"] * 4 + ["tie"] * 2 + ["lose"] + ["invalid"]


def drawn(generator, count, shares=(0.45, 0.2, 0.35)):
    return [("win", "tie", "lose")[index] for index in generator.choice(3, count, p=shares)]


@pytest.mark.parametrize(
    ("ties", "rate", "counted"), [("half", 5 / 7, 7), ("exclude", 4 / 5, 5), ("separate", 4 / 7, 7)]
)
def test_by_hand(ties, rate, counted):
    found = win_rate(EIGHT, ties=ties)
    assert (found.wins, found.ties, found.losses, found.invalid) == (4, 2, 1, 1)
    assert (found.judged, found.counted, found.grouped) == (7, counted, False)
    assert found.rate == pytest.approx(rate, abs=FLOAT64)
    assert found.standard_error == pytest.approx(math.sqrt(rate * (1 - rate) / counted), abs=FLOAT64)
    assert found.bootstrap.estimate == pytest.approx(rate, abs=FLOAT64)
    assert found.interval == found.wilson == wilson_interval(found.rate, counted)


@pytest.mark.parametrize(("wins", "count", "level"), [(8, 10, 0.95), (0, 7, 0.95), (40, 40, 0.9), (149, 256, 0.99)])
def test_wilson_is_scipys(wins, count, level):
    found = wilson_interval(wins / count, count, level=level)
    expected = stats.binomtest(wins, count).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == (
        pytest.approx(expected.low, abs=FLOAT64),
        pytest.approx(expected.high, abs=FLOAT64),
    )


def test_published_standard_error():
    """256 prompts at 58 %: three points, as the DPO paper's error bars have it."""
    found = win_rate(["win"] * 148 + ["lose"] * 108)
    assert round(100 * found.rate) == 58
    assert found.standard_error == pytest.approx(0.0309, abs=5e-5)


@pytest.mark.parametrize(("truth", "count"), [(0.5, 32), (0.58, 256), (0.9, 64)])
def test_wilson_covers(truth, count):
    wins = np.random.default_rng(0).binomial(count, truth, 4000)
    found = [wilson_interval(share / count, count) for share in range(count + 1)]
    covered = np.mean([found[won].low <= truth <= found[won].high for won in wins])
    assert abs(covered - 0.95) < COVERAGE


@pytest.mark.parametrize("ties", ["half", "exclude", "separate"])
def test_the_bootstrap_covers(ties):
    truth = {"half": 0.55, "exclude": 0.45 / 0.8, "separate": 0.45}[ties]
    generator = np.random.default_rng(0)
    found = [win_rate(drawn(generator, 80), ties=ties, resamples=400, seed=seed) for seed in range(1000)]
    assert abs(np.mean([one.bootstrap.low <= truth <= one.bootstrap.high for one in found]) - 0.95) < COVERAGE


def test_prompts_with_several_comparisons_are_resampled_whole():
    """Four verdicts on a prompt that mostly agree: Wilson's interval is too narrow, the bootstrap's is reported."""
    generator = np.random.default_rng(0)
    covered = {"wilson": 0, "interval": 0}
    groups = np.repeat(np.arange(40), 4).tolist()
    for seed in range(300):
        prompt = generator.random(40) < 0.6
        outcomes = np.where(generator.random(160) < 0.95, np.repeat(prompt, 4), ~np.repeat(prompt, 4))
        found = win_rate(["win" if won else "lose" for won in outcomes], groups=groups, resamples=400, seed=seed)
        assert found.grouped
        truth = 0.6 * 0.95 + 0.4 * 0.05
        for name in covered:
            covered[name] += getattr(found, name).low <= truth <= getattr(found, name).high
    assert abs(covered["interval"] / 300 - 0.95) < COVERAGE_SKEWED
    assert covered["wilson"] / 300 < 0.8


@settings(max_examples=60, deadline=None)
@given(OUTCOMES.filter(lambda outcomes: {"win", "lose"} & set(outcomes)), st.sampled_from(["half", "exclude"]))
def test_swapping_sides_mirrors_rate_and_intervals(outcomes, ties):
    one = win_rate(outcomes, ties=ties, resamples=200)
    other = win_rate([SWAPPED[outcome] for outcome in outcomes], ties=ties, resamples=200)
    for found, mirrored in ((one.wilson, other.wilson), (one.bootstrap, other.bootstrap)):
        assert found.estimate == pytest.approx(1 - mirrored.estimate, abs=FLOAT64)
        assert found.low == pytest.approx(1 - mirrored.high, abs=FLOAT64)
        assert found.high == pytest.approx(1 - mirrored.low, abs=FLOAT64)


@settings(max_examples=60, deadline=None)
@given(OUTCOMES.filter(lambda outcomes: {"win", "tie", "lose"} & set(outcomes)))
def test_separate_ties_make_three_shares_of_one(outcomes):
    won = win_rate(outcomes, ties="separate", resamples=50)
    lost = win_rate([SWAPPED[outcome] for outcome in outcomes], ties="separate", resamples=50)
    assert won.rate + lost.rate + won.ties / won.judged == pytest.approx(1, abs=FLOAT64)


def test_all_ties():
    assert win_rate(["tie"] * 9).rate == 0.5
    assert win_rate(["tie"] * 9, ties="separate").rate == 0.0
    with pytest.raises(
        InputError, match=r"^win_rate: nothing to rate among 9 outcomes \(9 ties, 0 invalid, ties: exclude\)$"
    ):
        win_rate(["tie"] * 9, ties="exclude")


def test_prompts_that_all_agree_leave_a_doubt():
    found = win_rate(["win"] * 12, groups=[0, 1, 2, 3] * 3)
    assert found.interval == found.bootstrap == wilson_interval(1.0, 4)
    found = win_rate(["win", "lose"] * 4, groups=[0, 0, 1, 1, 2, 2, 3, 3])
    assert found.interval == wilson_interval(0.5, 4)


def test_one_outcome_says_next_to_nothing():
    found = win_rate(["win", "invalid"])
    assert (found.rate, found.bootstrap.low, found.bootstrap.high) == (1.0, 0.0, 1.0)
    assert found.interval.low == pytest.approx(0.2065, abs=5e-5)
    assert found.interval.high == 1.0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, "nothing to rate among 0 outcomes"),
        (["invalid"] * 3, {}, "3 invalid"),
        (["won"], {}, "outcome 'won': must be one of win, tie, lose, invalid"),
        (["win"], {"ties": "drop"}, "ties is 'drop'"),
        (["win", "lose"], {"groups": [1]}, "2 outcomes but 1 groups"),
    ],
)
def test_what_cannot_be_rated_is_one_clear_error(arguments, options, message):
    with pytest.raises(InputError, match=message):
        win_rate(arguments, **options)


def test_no_outcome_has_no_interval():
    with pytest.raises(InputError, match="at least one outcome"):
        wilson_interval(0.5, 0)
    with pytest.raises(InputError, match="share"):
        wilson_interval(1.5, 3)


# Both win 101, the first alone 59, the second alone 121, both lose 33: a textbook table of McNemar's test.
TABLE = [("win", "win")] * 101 + [("win", "lose")] * 59 + [("lose", "win")] * 121 + [("lose", "lose")] * 33


def test_mcnemar_is_the_exact_binomial():
    found = paired_test(*zip(*TABLE, strict=True))
    assert (found.first_better, found.second_better, found.items, found.left_out) == (59, 121, 314, 0)
    assert found.sign_p == pytest.approx(stats.binomtest(59, 180).pvalue, rel=FLOAT64)
    assert found.sign_p == pytest.approx(4.434e-6, rel=1e-3)  # as statsmodels prints it
    assert found.permutation_p == pytest.approx(found.sign_p, rel=FLOAT64)  # without ties they are one test
    assert found.difference.estimate == pytest.approx((59 - 121) / 314, abs=FLOAT64)
    assert found.difference.high < 0


def test_the_permutation_test_is_the_enumeration():
    first = ["win", "win", "tie", "win", "lose", "tie", "win"]
    second = ["lose", "tie", "lose", "lose", "tie", "tie", "lose"]
    value = {"win": 1, "tie": 0.5, "lose": 0}
    differences = np.array([value[a] - value[b] for a, b in zip(first, second, strict=True)])
    sums = np.array([(np.array(signs) * differences).sum() for signs in itertools.product((-1, 1), repeat=7)])
    found = paired_test(first, second)
    assert found.permutation_p == pytest.approx((np.abs(sums) >= abs(differences.sum())).mean(), abs=FLOAT64)
    assert (found.first_better, found.second_better) == (5, 1)
    assert found.sign_p == pytest.approx(stats.binomtest(1, 6).pvalue, abs=FLOAT64)


def test_equal_methods_are_rejected_as_often_as_the_level_says():
    generator = np.random.default_rng(0)
    found = [paired_test(drawn(generator, 60), drawn(generator, 60), resamples=200, seed=seed) for seed in range(1000)]
    covered = np.mean([one.difference.low <= 0 <= one.difference.high for one in found])
    assert abs(covered - 0.95) < COVERAGE
    for name in ("sign_p", "permutation_p"):  # discrete: at most the level
        assert np.mean([getattr(one, name) <= 0.05 for one in found]) < 0.05 + COVERAGE


def test_what_one_of_two_lacks_is_left_out():
    found = paired_test(["win", "invalid", "win", "tie"], ["lose", "win", "win", "lose"], ties="exclude")
    assert (found.items, found.left_out, found.first_better) == (2, 2, 1)
    same = paired_test(["win", "lose"], ["win", "lose"])
    assert (same.sign_p, same.permutation_p, same.difference.high) == (1.0, 1.0, 0.0)


def test_holm_by_hand():
    """p of .25, .5 and 1 among three tests: 3 * .25, 2 * .5 and at least that."""
    outcomes = {"a": ["win"] * 3 + ["tie"], "b": ["lose"] * 3 + ["tie"], "c": ["win"] * 2 + ["lose"] + ["tie"]}
    tests = {(test.first, test.second): test for test in paired_tests(outcomes)}
    assert {pair: test.permutation_p for pair, test in tests.items()} == pytest.approx(
        {("a", "b"): 0.25, ("a", "c"): 1.0, ("b", "c"): 0.5}
    )
    assert {pair: test.holm_p for pair, test in tests.items()} == pytest.approx(
        {("a", "b"): 0.75, ("b", "c"): 1.0, ("a", "c"): 1.0}
    )


def test_bad_pairs_are_named():
    with pytest.raises(InputError, match="1 outcomes of DPO but 2 of PPO"):
        paired_test(["win"], ["win", "lose"], names=("DPO", "PPO"))
    with pytest.raises(InputError, match="share 1 judged items"):
        paired_test(["win", "invalid"], ["win", "lose"])
