"""A clock beside a run: one that hangs, or takes too long to stop, ends with the reason instead of never."""

import contextlib
import dataclasses
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self


@dataclasses.dataclass(frozen=True)
class TimeLimits:
    """Seconds after which a run is ended from outside.

    Attributes:
        step: the longest that a single wait within a step may take: for its batch, its dispatch, its results. None
            watches nothing.
        slow: the same for what is slower by nature: the first step, which compiles, an evaluation, a save, reading a
            checkpoint, writing the final model, a batch that it scores. Read only where ``step`` is given.
        stop: from the first SIGTERM or SIGINT to the end of the save; None = as long as it takes.
    """

    step: float | None = None
    slow: float = 1800.0
    stop: float | None = None


def end_process(message: str) -> None:
    """End this process with status 1: the Python stacks of all threads and the message go to standard error.

    From a thread, while another may hang in a collective for ever: so no exception, no exit handler, no buffer.
    """
    faulthandler.dump_traceback(file=2, all_threads=True)
    os.write(2, f"jaxalign: {message}\n".encode())
    os._exit(1)


class Watchdog:
    """Knows what the loop waits for and since when. Use as a context manager; it costs an assignment a wait.

    Args:
        limits: how long what may take.
        end: what ends the run, called once with one line.
    """

    def __init__(self, limits: TimeLimits, end: Callable[[str], None] = end_process) -> None:
        self.limits, self._end = limits, end
        self._waiting: tuple[float, float, str, str] | None = None
        self._stop_by: float | None = None
        self._closed = threading.Event()
        slow = limits.slow if limits.step is not None else None
        given = [seconds for seconds in (limits.step, slow, limits.stop) if seconds is not None]
        # How often a new wait is looked for: sooner than any of them can be too long.
        self._period = min(given, default=0.0) / 4
        self._thread = threading.Thread(target=self._watch, name="jaxalign watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._period:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wait_for(self, what: str, *, slow: bool = False) -> None:
        """The loop now waits for this ("the batch of step 7"), and for nothing before it any more."""
        if self.limits.step is not None:
            seconds, flag = (self.limits.slow, "--slow-timeout") if slow else (self.limits.step, "--step-timeout")
            self._waiting = (time.monotonic(), seconds, flag, what)

    def wait_for_parts(self, what: str) -> Callable[[int, int], None]:
        """An ``on_progress(done, total)`` that gives each part of this ``limits.slow`` seconds: it may have many."""
        return lambda done, total: self.wait_for(f"{what}, {done} of {total} done", slow=True)

    def stop_soon(self) -> None:
        """The run was asked to stop: from now on it has ``limits.stop`` seconds. Later calls change nothing."""
        if self.limits.stop is not None and self._stop_by is None:
            self._stop_by = time.monotonic() + self.limits.stop

    def _watch(self) -> None:
        pause = self._period
        while not self._closed.wait(pause):
            now, waiting, stop_by = time.monotonic(), self._waiting, self._stop_by
            doing = f"waiting for {waiting[3]}" if waiting else "at work"
            if stop_by is not None and now >= stop_by:
                self._end(
                    f"not stopped within {self.limits.stop:g} s of the signal (--stop-deadline), still {doing}: the "
                    "save is given up; the same command continues from the newest checkpoint that is complete"
                )
                return
            if waiting is not None and now >= waiting[0] + waiting[1]:
                self._end(
                    f"{doing} for more than {waiting[1]:g} s ({waiting[2]}): it hangs, or needs longer; the Python "
                    "stacks stand above, and the same command continues from the newest checkpoint"
                )
                return
            ends = [stop_by, waiting[0] + waiting[1] if waiting else None]
            pause = min([self._period, *(end - now for end in ends if end is not None)])


UNWATCHED = TimeLimits()


@contextlib.contextmanager
def watched(limits: TimeLimits, what: str) -> Iterator[Watchdog]:
    """Give what is done here ("the final model to be written") ``limits.slow`` seconds: for what lies outside the loop.

    No signal is waited for here: ``limits.stop`` is of the loop alone.
    """
    with Watchdog(dataclasses.replace(limits, stop=None)) as watch:
        watch.wait_for(what, slow=True)
        yield watch
