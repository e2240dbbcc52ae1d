"""Orbax's reads: where one fails, the others end with it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import TypeVarTuple

Ts = TypeVarTuple("Ts")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Event loops that are made here cancel what is still pending when they close, and wait for its end.

    Orbax reads all arrays at once, in an event loop that it closes when one cannot be read. The other reads would go on
    without it, and each would say on standard error that its loop is gone, or that nobody has waited for it.
    """
    make = asyncio.new_event_loop
    asyncio.new_event_loop = _Loop
    try:
        yield
    finally:
        asyncio.new_event_loop = make


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
