"""Student's interval of a sum of estimated variances, by hand."""

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation import Interval, student_interval
from tests.tolerances import FLOAT64


def test_by_hand():
    one = student_interval(2.0, [(0.25, 2)])
    np.testing.assert_allclose([one.low, one.high], 2 + np.array([-1, 1]) * 4.302652729749464 * 0.5, rtol=FLOAT64)
    # Equal parts of 2 and 2 degrees have 4 together.
    two = student_interval(0.0, [(0.125, 2), (0.125, 2)])
    assert two.high == pytest.approx(2.7764451051977987 * 0.5, rel=FLOAT64)
    assert student_interval(0.0, [(0.25, 2)], level=0.9).high == pytest.approx(2.919985580353726 * 0.5, rel=FLOAT64)
    assert student_interval(1.0, []) == student_interval(1.0, [(0.0, 2)]) == Interval(1.0, 1.0, 1.0)


@pytest.mark.parametrize(("parts", "level"), [([(1.0, 0)], 0.95), ([(-1.0, 2)], 0.95), ([(1.0, 2)], 1.0)])
def test_what_it_refuses(parts, level):
    with pytest.raises(InputError, match="student_interval: needs a level"):
        student_interval(0.0, parts, level=level)
