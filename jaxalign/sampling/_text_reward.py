"""Text rewards: any ``f(prompts, completions) -> scores``, called and checked; what is wrong is said of one prompt."""

import inspect
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.sampling._asking import Defect, ask, check_lengths, excerpt, in_a_line

TextReward = Callable[..., Any]
"""``f(prompts, completions) -> scores``, or ``f(prompts, completions, *, finished) -> scores``."""


def score_texts(
    reward: TextReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    finished: Sequence[bool] | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Call a text reward, any ``f(prompts, completions) -> scores``, and check what it returns.

    The reward is called once with both lists. Where it raises, or what it returns is not n numbers, it is called again
    with halves of the lists, log2(n) times, to find the text that it fails on.

    Args:
        reward: the function. Scores may be a list or an array of any number type, NumPy's, JAX's or PyTorch's.
        prompts, completions: n each, usually strings; with k samples a prompt, repeat each prompt k times.
        finished: which completions ended by themselves, and were not cut at a length. A reward that has a parameter
            of this name is given it; others are not.
        names: what errors call the n prompts; "prompt 0", "prompt 1" ... by default.

    Returns:
        float64 ``[n]``; of no texts none, and the reward is not called.

    Raises:
        InputError: the lists differ in length; or the reward raises (its own error is the cause), or the scores are
            not n finite numbers: one line that names the prompt and quotes its text.
    """
    count = len(prompts)
    check_lengths("reward", count, completions=completions, finished=finished, names=names)
    flags = None if finished is None or not _takes_finished(reward) else [bool(flag) for flag in finished]

    def named(index: int) -> str:
        return f"prompt {index}" if names is None else names[index]

    def quoted(index: int) -> str:
        return f"prompt {excerpt(prompts[index])}, completion {excerpt(completions[index])}"

    def call(start: int, stop: int) -> np.ndarray:
        """Scores of texts start .. stop - 1; the reward gets lists of its own."""
        more = {} if flags is None else {"finished": flags[start:stop]}
        scores = reward(list(prompts[start:stop]), list(completions[start:stop]), **more)
        return _checked(scores, stop - start, named, start)

    return ask("reward", call, count, named, quoted) if count else np.zeros(0)


def _takes_finished(reward: TextReward) -> bool:
    try:
        return "finished" in inspect.signature(reward).parameters
    except (TypeError, ValueError):  # a function written in C does not say
        return False


def _checked(scores: Any, count: int, named: Callable[[int], str], start: int) -> np.ndarray:
    array = as_floats(scores, lambda index: (f"the score of {named(start + index)}", start + index))
    if array.shape != (count,):
        what = f"shape {list(array.shape)}" if array.ndim != 1 else f"{len(array)}"
        raise Defect(f"expected {count} {'scores' if count > 1 else 'score'}, one a prompt, got {what}")
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(array.astype(np.float32)))
    if bad.size:
        index, score = start + int(bad[0]), array[bad[0]]
        what = "beyond float32" if np.isfinite(score) else "not finite"
        raise Defect(f"the score of {named(index)} is {what}: {score}", index)
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
        raise Defect(f"scores must be real numbers: {in_a_line(error)}") from error


def _not_a_number(score: Any, place: tuple[str, int]) -> Defect:
    return Defect(f"{place[0]} is not a number: {score!r:.60}", place[1])
