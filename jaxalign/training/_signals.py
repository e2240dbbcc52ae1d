"""SIGTERM and SIGINT as a wish that a loop can ask about between steps."""

import itertools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import jax

# JAX's service agrees on a number above all that processes have asked about, and compares for equality: so it is asked
# about 1, 2, 3 ... whatever step a run begins at, and however many loops one process runs.
_QUESTIONS = itertools.count(1)


class StopRequest:
    """Between ``with`` and its end, the first SIGTERM or SIGINT only sets a flag; a second one ends the process.

    At once, whatever it waits for, such as a save to a disk that hangs: by the signal, not by an exception, which would
    wait with it. Handlers can be set in the main thread only; in another thread this asks for nothing. On several
    processes JAX's own service listens to SIGTERM and agrees on one step for all, so that all save the same one: the
    first SIGINT is handed on to it as SIGTERM, a second one ends the process, a second SIGTERM does nothing.

    Args:
        asked: called when the wish arrives (with several processes, when they have agreed on the step).
    """

    def __init__(self, asked: Callable[[], None] = lambda: None) -> None:
        self._asked = asked
        self._flag = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() > 1:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, _hand_on)
            return self
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Return whether to stop now; asked after every step, on several processes the same answer on all."""
        if jax.process_count() == 1:
            return self._flag
        from jax.experimental import multihost_utils

        reached = multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
        if reached:
            self._asked()
        return reached

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for handled in self._previous:
            signal.signal(handled, signal.SIG_DFL)
        self._flag = True
        self._asked()


def _hand_on(number: int, frame: FrameType | None) -> None:
    """SIGINT to one of several processes, as the signal that JAX's service listens to."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
