"""Best-of-N: sample N, keep the one the reward likes best."""

import math

import numpy as np

from jaxalign.errors import InputError
from jaxalign.sampling._asking import Defect
from jaxalign.sampling._samples import Array, Samples
from jaxalign.sampling._text_reward import as_floats


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


def _check_scores(scores: Array) -> np.ndarray:
    try:
        checked = as_floats(scores, lambda prompt: (f"the score of prompt {prompt}", prompt))
    except Defect as defect:
        raise InputError(defect.problem) from defect
    if checked.ndim != 2 or 0 in checked.shape:
        raise InputError(f"scores must have shape [prompts, samples], got {list(checked.shape)}")
    bad = np.argwhere(~np.isfinite(checked))
    if bad.size:
        prompt, sample = map(int, bad[0])
        raise InputError(f"the score of prompt {prompt}, sample {sample} is not finite: {checked[prompt, sample]}")
    return checked
