"""Waiting: how long until the next request may go, and how long after a failure."""

import email.utils
import random
import threading
import time
from collections.abc import Callable, Mapping

__all__ = ["Pace", "back_off", "retry_after"]


class Pace:
    """At most so many units a minute, spread evenly: no window of a minute holds more, at its start as at its end.

    Any thread may call it.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def reserve(self, units: float) -> float:
        """Take units; returns the seconds to wait before they are used."""
        with self._lock:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + units * self._seconds
            return start - now

    def correct(self, units: float) -> None:
        """More units were used than taken (fewer where negative)."""
        with self._lock:
            self._free += units * self._seconds

    def pause(self, seconds: float) -> None:
        """Nobody goes for so many seconds."""
        with self._lock:
            self._free = max(self._free, self._clock() + seconds)


def back_off(attempt: int, *, first: float, longest: float, draw: random.Random) -> float:
    """Seconds to wait after failure ``attempt`` (from 0): uniform in [half, whole] of min(longest, first * 2^attempt).

    Half is kept, so that a wait is never nothing; the rest is drawn, so that waiters do not come back together.
    """
    whole = min(longest, first * 2.0 ** min(attempt, 60))
    return whole * (0.5 + 0.5 * draw.random())


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a server asks to stay away, by ``retry-after-ms`` or ``Retry-After`` (seconds or a date).

    ``now`` is the Unix time, by default the clock's. None where it says nothing that can be read.
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        moment = email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    return max(0.0, moment - (time.time() if now is None else now))
