"""Calling a user's function of many texts: whatever is wrong becomes one line about one text."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxalign.errors import InputError

Answer = TypeVar("Answer")

EXCERPT = 60
LONGEST_LINE = 300


class Defect(Exception):
    """What is wrong with an answer, and of which text (None: of the call as a whole)."""

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.index = problem, index


def ask(
    what: str,
    call: Callable[[int, int], Answer],
    count: int,
    named: Callable[[int], str],
    quoted: Callable[[int], str],
) -> Answer:
    """``call(0, count)``; where it fails, it is called with halves, log2(count) times, to find the text it fails on.

    Args:
        what: what errors call the function.
        call: asks about texts start .. stop - 1 and checks the answer; raises what the function raises, or ``Defect``.
        count: how many texts, at least 1.
        named, quoted: what errors call text i, and its content in short.

    Raises:
        InputError: one line that names the text and quotes it; the function's own error is the cause. Running out of
            memory is raised as it is: no text is at fault, and smaller calls might hide it.
    """
    try:
        return call(0, count)
    except Exception as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        if isinstance(error, Defect) and error.index is not None:
            raise InputError(f"{what}: {error.problem} ({quoted(error.index)})") from None
        index, own = _first_failure(call, count)
        if own is None:
            raise InputError(
                f"{what}: {_told(error)}, called with {named(0)} and the {count - 1} after it, though not for each of "
                f"them alone ({quoted(0)})"
            ) from _cause(error)
        raise InputError(f"{what}: {_told(own)}, called with {named(index)} alone ({quoted(index)})") from _cause(own)


def _first_failure(call: Callable[[int, int], Any], count: int) -> tuple[int, Exception | None]:
    """The text that a function fails on, by bisection, and how; None where it does not fail on that one alone."""
    start, stop = 0, count
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            call(start, middle)
        except Exception:
            stop = middle
        else:
            start = middle
    try:
        call(start, stop)
    except Exception as error:
        return start, error
    return start, None


def _told(error: Exception) -> str:
    """What went wrong in a line, the kind of an error that is not ours first."""
    return error.problem if isinstance(error, Defect) else f"it raised {type(error).__name__}: {in_a_line(error)}"


def _cause(error: Exception) -> BaseException | None:
    return error.__cause__ if isinstance(error, Defect) else error


def in_a_line(error: BaseException) -> str:
    """An error's text without line breaks, long ones cut."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."


def excerpt(text: Any) -> str:
    """The end of a text, or of the last of several messages: where a prompt differs from the others, mostly."""
    if isinstance(text, list | tuple) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    if not isinstance(text, str):
        return f"{text!r:.{EXCERPT}}"
    return repr(text) if len(text) <= EXCERPT else f"...{text[-EXCERPT:]!r}"


def check_lengths(what: str, count: int, **columns: Sequence[Any] | None) -> None:
    """Every column that is there has one value a prompt. Raises ``InputError``."""
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise InputError(f"{what}: {count} prompts but {len(values)} {name}")
