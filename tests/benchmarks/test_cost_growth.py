"""The benchmark of cost growth, at its smallest: one axis, two sizes, and what is said of them."""

import pytest

from benchmarks import cost_growth

ROWS = [
    {"size": 8, "seconds": 0.5, "arguments_mb": 10.0, "temporary_mb": 1.0},
    {"size": 16, "seconds": 1.0, "arguments_mb": 10.0, "temporary_mb": 4.0},
]


def test_slopes_are_exponents():
    assert [cost_growth.slope(ROWS, cost) for cost in ("seconds", "arguments_mb", "temporary_mb")] == [1, 0, 2]
    assert cost_growth.table({"length": ROWS}).splitlines()[2:] == [
        "| length | 8 | 1.00 | 10.0 | 1.0 |",
        "| length | 16 | 2.00 | 10.0 | 4.0 |",
        "| length, slope | | 1.00 | 0.00 | 2.00 |",
    ]


def test_devices_divide_what_one_of_them_holds():
    one, two = cost_growth.sweep("devices", (1, 2), rounds=1, width=64)
    assert one["seconds"] > 0
    assert two["seconds"] > 0
    # Parameters, reference and Adam's moments halve; norms, the step and its key are on every device.
    assert two["arguments_mb"] == pytest.approx(one["arguments_mb"] / 2, rel=0.01)
    assert two["temporary_mb"] < one["temporary_mb"]
