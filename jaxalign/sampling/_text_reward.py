"""Text rewards: any ``f(prompts, completions) -> scores``, called and checked; what is wrong is said of one prompt."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError

TextReward = Callable[[Sequence[Any], Sequence[Any]], Any]

EXCERPT = 60


class Defect(Exception):
    """What is wrong with a reward's scores, and of which text (None: of the call as a whole)."""

    def __init__(self, problem: str, index: int | None = None) -> None:
        super().__init__(problem)
        self.problem, self.index = problem, index


def score_texts(
    reward: TextReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Call a text reward, any ``f(prompts, completions) -> scores``, and check what it returns.

    The reward is called once with both lists. Where it raises, or what it returns is not n numbers, it is called again
    with halves of the lists, log2(n) times, to find the text that it fails on.

    Args:
        reward: the function. Scores may be a list or an array of any number type, NumPy's, JAX's or PyTorch's.
        prompts, completions: n each, usually strings; with k samples a prompt, repeat each prompt k times.
        names: what errors call the n prompts; "prompt 0", "prompt 1" ... by default.

    Returns:
        float64 ``[n]``; of no texts none, and the reward is not called.

    Raises:
        InputError: the lists differ in length; or the reward raises (its own error is the cause), or the scores are
            not n finite numbers: one line that names the prompt and quotes its text.
    """
    count = len(prompts)
    for what, values in (("completions", completions), ("names", names)):
        if values is not None and len(values) != count:
            raise InputError(f"reward: {count} prompts but {len(values)} {what}")

    def named(index: int) -> str:
        return f"prompt {index}" if names is None else names[index]

    def quoted(index: int) -> str:
        return f"prompt {_excerpt(prompts[index])}, completion {_excerpt(completions[index])}"

    def call(start: int, stop: int) -> np.ndarray:
        """Scores of texts start .. stop - 1, the lists' copies handed out."""
        return _checked(reward(list(prompts[start:stop]), list(completions[start:stop])), stop - start, named, start)

    if not count:
        return np.zeros(0)
    try:
        return call(0, count)
    except Exception as error:
        if _out_of_memory(error):
            raise
        if isinstance(error, Defect) and error.index is not None:
            raise InputError(f"reward: {error.problem} ({quoted(error.index)})") from None
        index, own = _first_failure(call, count)
        if own is None:
            raise InputError(
                f"reward: {_told(error)}, called with {named(0)} and the {count - 1} after it, though not for each of "
                f"them alone ({quoted(0)})"
            ) from _cause(error)
        raise InputError(f"reward: {_told(own)}, called with {named(index)} alone ({quoted(index)})") from _cause(own)


def _first_failure(call: Callable[[int, int], Any], count: int) -> tuple[int, Exception | None]:
    """The text that a reward fails on, by bisection, and how; None where it does not fail on that one alone."""
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


def _checked(scores: Any, count: int, named: Callable[[int], str], start: int) -> np.ndarray:
    array = as_floats(scores, lambda index: (f"the score of {named(start + index)}", start + index))
    if array.shape != (count,):
        what = f"shape {list(array.shape)}" if array.ndim != 1 else f"{len(array)}"
        raise Defect(f"expected {count} {'scores' if count > 1 else 'score'}, one a prompt, got {what}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        index = start + int(bad[0])
        raise Defect(f"the score of {named(index)} is not finite: {array[bad[0]]}", index)
    return array


def as_floats(scores: Any, place: Callable[[int], tuple[str, int]]) -> np.ndarray:
    """Numbers of any dtype (bfloat16 too) as float64; text, None, booleans and ragged lists are refused.

    Raises ``Defect``; ``place(i)`` is what the i-th score is called, and its text's index.
    """
    try:
        if isinstance(scores, list | tuple):
            for index, score in enumerate(scores):
                if score is None or isinstance(score, str | bytes | bool | np.bool_):
                    raise _not_a_number(score, place(index))
        array = np.asarray(scores)
        if array.dtype == object and array.ndim == 1:
            for index, score in enumerate(array):
                if isinstance(score, bool) or not isinstance(score, numbers.Real | np.generic):
                    raise _not_a_number(score, place(index))
        elif array.dtype == object and not isinstance(scores, list | tuple | np.ndarray):
            raise TypeError(f"not {'None' if scores is None else f'a {type(scores).__name__}'}")
        elif array.dtype.kind in "bOSUcMm":
            raise TypeError(f"not {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise Defect(f"scores must be real numbers: {_line(error)}") from error


def _not_a_number(score: Any, place: tuple[str, int]) -> Defect:
    return Defect(f"{place[0]} is not a number: {score!r:.60}", place[1])


def _told(error: Exception) -> str:
    """What went wrong in a line, the kind of an error that is not ours first."""
    if isinstance(error, Defect):
        return error.problem
    return f"it raised {type(error).__name__}: {_line(error)}"


def _cause(error: Exception) -> BaseException | None:
    return error.__cause__ if isinstance(error, Defect) else error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _out_of_memory(error: Exception) -> bool:
    """No fault of a prompt, and smaller calls might hide it."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _excerpt(text: Any) -> str:
    """The end of a text, or of the last of several messages: where a prompt differs from the others, mostly."""
    if isinstance(text, list | tuple) and text and isinstance(text[-1], dict):
        text = text[-1].get("content")
    if not isinstance(text, str):
        return f"{text!r:.{EXCERPT}}"
    return repr(text) if len(text) <= EXCERPT else f"...{text[-EXCERPT:]!r}"
