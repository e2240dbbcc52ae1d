"""Reads that end together: the loops of the threads that read, and of no other."""

import asyncio
import contextlib
import threading

import pytest

from jaxalign.training._reads import _Loop, ending_together


def makes_own():
    """Whether a loop that this thread makes now ends what is pending."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        return isinstance(loop, _Loop)


class Reader(threading.Thread):
    """Inside from ``begin`` to ``end``, and says in between whether its loops are its own."""

    def __init__(self):
        super().__init__()
        self.inside, self.ask, self.said = threading.Event(), threading.Event(), None

    def run(self):
        with ending_together():
            self.inside.set()
            self.ask.wait(30)
            self.said = makes_own()

    def begin(self):
        self.start()
        assert self.inside.wait(30)

    def end(self):
        self.ask.set()
        self.join(30)
        return self.said


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_restores_at_once_leave_asyncio_as_it_was(order):
    usual = asyncio.new_event_loop
    readers = [Reader(), Reader()]
    for reader in readers:
        reader.begin()
        assert not makes_own()  # this thread reads nothing
    for number in order:
        assert readers[number].end()
        assert not makes_own()
    assert asyncio.new_event_loop is usual


def test_reads_within_reads_and_some_that_fail():
    usual = asyncio.new_event_loop
    with ending_together():
        with contextlib.suppress(ValueError), ending_together():
            raise ValueError("no array")
        assert makes_own()
    assert asyncio.new_event_loop is usual


def test_what_is_pending_ends_with_its_loop():
    ended = []

    async def read():
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    async def begin():
        task = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        return task

    with ending_together():
        loop = asyncio.new_event_loop()
        task = loop.run_until_complete(begin())
        loop.close()
    assert ended
    assert task.cancelled()
