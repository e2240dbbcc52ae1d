"""Reading a checkpoint on several processes: what one of them cannot read is damaged for all."""

import errno
from collections.abc import Callable
from typing import TypeVar

import jax

from jaxalign import sharding
from jaxalign.errors import InputError

T = TypeVar("T")

# What a process says of its part: the first word is one of these, the rest is why.
DAMAGED, ENDS = "damaged", "ends"


class DamagedError(Exception):
    """A checkpoint that cannot be read, the same text on all processes: it names those that found it so, if not all."""


def read_together(read: Callable[[], T]) -> T:
    """``read()`` where it succeeds on every process; in a run of several processes all must call this.

    Args:
        read: must wait for no other process: one that fails would never come.

    Raises:
        DamagedError: some process could not read its part.
        Exception: what is no matter of damage (a changed flag, no memory, no permission): what ``read`` raised here;
            on a process where nothing was wrong an InputError that names the one where it was.
    """
    found: list[T] = []
    failure: Exception | None = None
    verdict = ""
    try:
        found.append(read())
    except Exception as error:  # whatever a reader of damaged files may raise
        failure = error
        whole = isinstance(error, InputError | MemoryError) or _passing(error)
        verdict = f"{ENDS} {line(error)}" if whole else f"{DAMAGED} {line(_root(error))}"
    verdicts = sharding.exchange(verdict)
    if ends := _first(verdicts, ENDS):
        if failure is not None and verdict.startswith(ENDS):
            raise failure
        raise InputError(ends)
    if damaged := _first(verdicts, DAMAGED):
        raise DamagedError(damaged) from failure
    return found[0]


def line(error: BaseException) -> str:
    """What an error says, in one line that is not too long: what it is about comes first in it, and why last."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:148]} ... {text[-147:]}"


def _root(error: BaseException) -> BaseException:
    """What it was raised from: the reader's own words of an array and a file, which Orbax wraps in the whole layout."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first(verdicts: list[str], kind: str) -> str:
    """Why, from the first process of this verdict; the processes are named if they are not all."""
    those = [process for process, verdict in enumerate(verdicts) if verdict.startswith(kind)]
    if not those:
        return ""
    why = verdicts[those[0]].removeprefix(kind).lstrip()
    return why if len(those) == jax.process_count() else f"process {', '.join(map(str, those))}: {why}"


def _passing(error: Exception) -> bool:
    """Whether what failed is the machine, not the files: another try may read them."""
    errnos = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ESTALE)
    return "RESOURCE_EXHAUSTED" in str(error) or (isinstance(error, OSError) and error.errno in errnos)
