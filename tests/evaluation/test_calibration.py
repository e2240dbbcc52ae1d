"""Accuracy and calibration of preference models against numbers worked out by hand."""

import math

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import calibration
from tests.tolerances import FLOAT64


def margin(probability):
    """The margin at which a model is that sure."""
    return math.log(probability / (1 - probability))


def test_four_pairs_by_hand():
    """Sure at .7 of four pairs, right in three; sure at .9 of two, right in one."""
    margins = [margin(0.7)] * 3 + [-margin(0.7), margin(0.9), -margin(0.9)]
    found = calibration(margins, bins=5)
    assert found.accuracy == pytest.approx(4 / 6, abs=FLOAT64)
    assert found.pairs == 6
    low, high = found.bins
    assert (low.predicted, low.observed, low.count) == (pytest.approx(0.7, abs=FLOAT64), 0.75, 4)
    assert (high.predicted, high.observed, high.count) == (pytest.approx(0.9, abs=FLOAT64), 0.5, 2)
    assert found.expected_calibration_error == pytest.approx((4 * 0.05 + 2 * 0.4) / 6, abs=FLOAT64)
    wanted = -(3 * math.log(0.7) + math.log(0.3) + math.log(0.9) + math.log(0.1)) / 6
    assert found.log_loss == pytest.approx(wanted, abs=FLOAT64)
    assert found.mean_margin == pytest.approx(2 * margin(0.7) / 6, abs=FLOAT64)


def test_wilsons_interval():
    """Of 8 right in 10, as the textbooks have it: [.490, .943]."""
    found = calibration([1.0] * 8 + [-1.0] * 2)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))


def test_all_right_ends_at_one():
    assert calibration([1.0, 2.0]).high == 1.0
    assert calibration([-1.0, -2.0]).low == 0.0


def test_a_tie_is_half_right_and_knows_nothing():
    found = calibration([0.0, 0.0, 0.0])
    assert found.accuracy == 0.5
    assert found.log_loss == pytest.approx(math.log(2), abs=FLOAT64)
    assert found.expected_calibration_error == 0


def test_pairs_drawn_as_the_model_says_are_calibrated():
    """Outcomes from Bradley-Terry with the model's own margins: every bin's interval should hold its prediction."""
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 2, 20_000)
    won = rng.random(20_000) < 1 / (1 + np.exp(-differences))
    found = calibration(np.where(won, differences, -differences))
    assert found.expected_calibration_error < 0.01
    assert sum(part.low <= part.predicted <= part.high for part in found.bins) >= len(found.bins) - 1
    overconfident = calibration(3 * np.where(won, differences, -differences))
    assert overconfident.expected_calibration_error > 0.05
    assert overconfident.accuracy == found.accuracy


@pytest.mark.parametrize("margins", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_margin_is_refused(margins):
    with pytest.raises(InputError, match="finite margins"):
        calibration(margins)


def test_huge_margins_do_not_overflow():
    found = calibration([1e4, -1e4])
    assert found.log_loss == pytest.approx(5e3)
    assert found.bins[0].predicted == 1.0
