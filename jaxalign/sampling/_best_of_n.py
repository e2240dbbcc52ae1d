"""Best-of-N: sample N, keep the one the reward likes best; and scores of a text reward, checked."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.sampling._samples import Array, Samples

TextReward = Callable[[Sequence[Any], Sequence[Any]], Any]


def best_of_n(scores: Array) -> np.ndarray:
    """Index of the best of the first n samples, for every n from 1 to N: best[p, n-1] = argmax_{j < n} scores[p, j].

    Nested by construction: best-of-n uses the first n of the same samples. Ties go to the earlier sample.

    Args:
        scores: float ``[P, N]``, sample j of prompt p.

    Returns:
        int64 ``[P, N]``; the last column is best-of-N.

    Raises:
        InputError: a wrong shape or dtype, or a score that is not finite, naming prompt and sample.
    """
    checked = _check_scores(scores)
    best = np.zeros(checked.shape, np.int64)
    rows = np.arange(len(checked))
    for sample in range(1, checked.shape[1]):
        previous = best[:, sample - 1]
        best[:, sample] = np.where(checked[:, sample] > checked[rows, previous], sample, previous)
    return best


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound of KL(best-of-n || one sample) in nats: log n - (n - 1) / n.

    Equation from Stiennon et al. 2020 (2009.01325), appendix G.3; a bound, reached when all n scores always differ
    (Beirami et al. 2024, 2401.01879).

    Raises:
        InputError: n below 1.
    """
    if n < 1:
        raise InputError(f"best_of_n_kl_bound: n must be at least 1, is {n}")
    return math.log(n) - (n - 1) / n


def best_of(samples: Samples, scores: Array, n: int | None = None) -> Samples:
    """The best of the first n samples of every prompt.

    Args:
        samples: P N rows, prompt-major, as ``generate(..., samples_per_prompt=N)`` returns them.
        scores: float ``[P, N]``.
        n: how many samples compete; all N by default.

    Returns:
        ``Samples`` of P rows.

    Raises:
        InputError: scores that do not fit the samples, or n outside 1..N.
    """
    checked = _check_scores(scores)
    prompts, count = checked.shape
    rows = np.shape(samples.tokens)[0]
    if prompts * count != rows:
        raise InputError(f"best_of: scores of shape [{prompts}, {count}] do not fit {rows} samples")
    n = count if n is None else n
    if not 1 <= n <= count:
        raise InputError(f"best_of: n must be in 1..{count}, is {n}")
    return samples.rows(np.arange(prompts) * count + best_of_n(checked)[:, n - 1])


def score_texts(reward: TextReward, prompts: Sequence[Any], completions: Sequence[Any]) -> np.ndarray:
    """Call a text reward, any ``f(prompts, completions) -> scores``, and check what it returns.

    Args:
        reward: the function; called once with both lists.
        prompts, completions: n each, usually strings; with k samples a prompt, repeat each prompt k times.

    Returns:
        float64 ``[n]``.

    Raises:
        InputError: the lists differ in length, or the scores are not n finite numbers; the message names the prompt.
    """
    if len(prompts) != len(completions):
        raise InputError(f"reward: {len(prompts)} prompts but {len(completions)} completions")
    scores = _as_floats(reward(prompts, completions))
    if scores.shape != (len(prompts),):
        raise InputError(f"reward: expected {len(prompts)} scores, one a prompt, got shape {list(scores.shape)}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise InputError(f"reward: the score of prompt {int(bad[0])} is not finite: {scores[bad[0]]}")
    return scores


def _check_scores(scores: Array) -> np.ndarray:
    checked = _as_floats(scores)
    if checked.ndim != 2 or 0 in checked.shape:
        raise InputError(f"scores must have shape [prompts, samples], got {list(checked.shape)}")
    bad = np.argwhere(~np.isfinite(checked))
    if bad.size:
        prompt, sample = map(int, bad[0])
        raise InputError(f"the score of prompt {prompt}, sample {sample} is not finite: {checked[prompt, sample]}")
    return checked


def _as_floats(scores: Any) -> np.ndarray:
    """Numbers of any dtype (bfloat16 too) as float64; text, None, booleans and ragged lists are refused."""
    if isinstance(scores, list | tuple):
        for index, score in enumerate(scores):
            if score is None or isinstance(score, str | bytes | bool):
                raise InputError(f"reward: the score of prompt {index} is not a number: {score!r}")
    try:
        array = np.asarray(scores)
        if array.dtype.kind in "bOSUcMm":
            raise TypeError(f"dtype {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"scores must be real numbers: {error}") from error
