"""Orbax's reads: where one fails, the others end with it."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Event loops that this thread makes here cancel what is still pending when they close, and wait for its end.

    Orbax reads all arrays at once, in an event loop that it closes when one cannot be read. The other reads would go on
    without it, and each would say on standard error that its loop is gone, or that nobody has waited for it.
    """
    _factory.enter()
    try:
        yield
    finally:
        _factory.leave()


class _Factory:
    """In the place of ``asyncio.new_event_loop``, which Orbax calls, while any thread is inside ``ending_together``.

    The other threads of the process get the loops that they would get without it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: list[int] = []
        self._usual = asyncio.new_event_loop

    def enter(self) -> None:
        with self._lock:
            if not self._inside:
                self._usual, asyncio.new_event_loop = asyncio.new_event_loop, self
            self._inside.append(threading.get_ident())

    def leave(self) -> None:
        with self._lock:
            self._inside.remove(threading.get_ident())
            if not self._inside:
                asyncio.new_event_loop = self._usual

    def __call__(self) -> asyncio.AbstractEventLoop:
        return _Loop() if threading.get_ident() in self._inside else self._usual()


_factory = _Factory()


class _Loop(asyncio.SelectorEventLoop):
    def close(self) -> None:
        if not self.is_closed() and (pending := asyncio.all_tasks(self)):
            for task in pending:
                task.cancel()
            self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_closed():  # a thread of the reader's that comes too late: nobody waits for it
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)
