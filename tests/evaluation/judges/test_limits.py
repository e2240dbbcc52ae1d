"""Waiting: paces, back-off with jitter, and what servers ask for."""

import random

import pytest

from jaxalign.evaluation.judges._limits import Pace, back_off, retry_after


def test_no_window_of_a_minute_holds_more_than_the_limit():
    now = 100.0
    pace = Pace(30, clock=lambda: now)
    starts = []
    for step in range(200):
        now = 100.0 + step * 0.1
        starts.append(now + pace.reserve(1))
    assert all(later - earlier >= 60 for earlier, later in zip(starts, starts[30:], strict=False))
    assert starts[-1] == pytest.approx(100 + 199 * 2)


def test_an_estimate_is_corrected():
    pace = Pace(60, clock=lambda: 0.0)
    assert pace.reserve(10) == 0
    pace.correct(-4)
    assert pace.reserve(1) == pytest.approx(6)


def test_without_a_limit_only_a_pause_waits():
    now = 0.0
    pace = Pace(None, clock=lambda: now)
    assert [pace.reserve(1000) for _ in range(3)] == [0, 0, 0]
    pace.pause(5)
    assert pace.reserve(1) == 5
    now = 6.0
    assert pace.reserve(1) == 0


def test_back_off_doubles_up_to_its_limit_and_keeps_half():
    draw = random.Random(0)
    for attempt, whole in enumerate([0.5, 1, 2, 4, 4, 4]):
        waits = [back_off(attempt, first=0.5, longest=4, draw=draw) for _ in range(200)]
        assert whole / 2 <= min(waits) < 0.6 * whole
        assert 0.9 * whole < max(waits) <= whole
    assert back_off(5000, first=0.5, longest=4, draw=draw) <= 4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:20:00 GMT"}, 200),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_what_a_server_asks_for(headers, seconds):
    assert retry_after(headers, now=1000.0) == seconds
