"""Measures of generated text that need no model: diversity, repetition, length."""

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from jaxalign.errors import InputError
from jaxalign.evaluation._bootstrap import Interval

__all__ = [
    "LengthStatistics",
    "distinct_n",
    "distinct_n_interval",
    "length_statistics",
    "ngram_entropy",
    "repetition",
    "sample_distance",
]


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of the texts together (Li et al. 2016, arXiv 1510.03055).

    Words are lower-cased and split at white space; n-grams do not cross texts. Between 0 and 1, 0 where no text has
    ``n`` words. It falls as texts are added: compare only sets of equal size and length.
    """
    counts = _counts(texts, n)
    return len(counts) / counts.total() if counts else 0.0


def distinct_n_interval(
    texts: Sequence[str], n: int, *, groups: Sequence[Hashable] | None = None, level: float = 0.95
) -> Interval:
    """``distinct_n`` with its interval: what as many other texts of the same kind would have.

    By the jackknife over groups (Efron and Tibshirani 1993, chapter 11), estimate -+ t_{G-1} s with s^2 the variance
    (G - 1) / G sum_g (d_-g - mean d_-)^2 of the values without each group. The bootstrap would not do: a text that is
    drawn twice has no distinct n-gram the second time. The jackknife errs on the wide side (Efron and Stein 1981): it
    covers as it says where most n-grams are rare, and more where few are.

    Args:
        texts: ``[N]``.
        n: words a gram.
        groups: ``[N]``, the prompt of each; one a text where left out.
        level: coverage.

    Raises:
        InputError: groups of another number, or fewer than two.
    """
    labels = range(len(texts)) if groups is None else groups
    if len(labels) != len(texts):
        raise InputError(f"distinct_n_interval: {len(texts)} texts but {len(labels)} groups")
    counts: dict[Hashable, Counter[tuple[str, ...]]] = {}
    for text, label in zip(texts, labels, strict=True):
        counts.setdefault(label, Counter()).update(_grams(text, n))
    if len(counts) < 2:
        raise InputError(f"distinct_n_interval: an interval needs at least two groups, got {len(counts)}")
    everything: Counter[tuple[str, ...]] = Counter()
    for own in counts.values():
        everything.update(own)
    without = []
    for own in counts.values():
        left = everything.total() - own.total()
        lost = sum(everything[gram] == count for gram, count in own.items())
        without.append((len(everything) - lost) / left if left else 0.0)
    number = len(without)
    deviation = float(np.sqrt((number - 1) / number * np.sum((np.array(without) - np.mean(without)) ** 2)))
    estimate = distinct_n(texts, n)
    reach = float(special.stdtrit(number - 1, 0.5 + level / 2)) * deviation
    return Interval(estimate, max(estimate - reach, 0.0), min(estimate + reach, 1.0))


def ngram_entropy(texts: Iterable[str], n: int) -> float:
    """Entropy of the texts' word n-grams, -sum_g p(g) log p(g), nats (Ent-n, Zhang et al. 2018, arXiv 1809.05972).

    p(g) is the share of g among all n-grams, words and n-grams as in ``distinct_n``. 0 where there is none; at most the
    log of their number, so compare only sets of equal size.
    """
    counts = np.array(list(_counts(texts, n).values()), np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum()) + 0.0  # never -0.0


def sample_distance(texts: Sequence[str], groups: Sequence[Hashable], *, n: int = 2) -> np.ndarray:
    """How unlike the samples of each prompt are: the mean of 1 - |A & B| / |A | B| over its pairs of samples.

    A and B are the sets of word n-grams of two samples of one prompt (Jaccard distance); two without any are alike. 0:
    the same words every time; 1: nothing in common. Unlike ``distinct_n`` it does not fall as samples are added.

    Args:
        texts, groups: ``[N]`` samples and their prompts.
        n: words a gram.

    Returns:
        float64, one for each prompt with two samples or more, in order of first appearance.
    """
    if len(texts) != len(groups):
        raise InputError(f"sample_distance: {len(texts)} texts but {len(groups)} groups")
    sets: dict[Hashable, list[set[tuple[str, ...]]]] = {}
    for text, group in zip(texts, groups, strict=True):
        sets.setdefault(group, []).append(set(_grams(text, n)))

    def distance(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
        return 1 - len(a & b) / len(a | b) if a | b else 0.0

    return np.array(
        [np.mean([distance(a, b) for a, b in itertools.combinations(own, 2)]) for own in sets.values() if len(own) > 1],
        np.float64,
    )


def repetition(texts: Iterable[str], *, n: int = 4) -> np.ndarray:
    """Of each text's word n-grams, the share that it has had before: 1 - distinct / all, float64 ``[N]``.

    seq-rep-n of Welleck et al. (2020, arXiv 1908.04319). 0 where the text has fewer than ``n`` words.
    """
    grams = [_grams(text, n) for text in texts]
    return np.array([1 - len(set(own)) / len(own) if own else 0.0 for own in grams], np.float64)


@dataclass(frozen=True)
class LengthStatistics:
    """Of texts, in words split at white space."""

    texts: int
    mean: float
    standard_deviation: float
    """Unbiased; 0 of one text."""
    shortest: int
    percentile_5: float
    median: float
    percentile_95: float
    longest: int
    empty: int
    """Texts without a word."""


def length_statistics(texts: Iterable[str]) -> LengthStatistics:
    """Mean, spread and quantiles (linear interpolation) of the lengths. Raises ``InputError`` for no text."""
    lengths = np.array([len(text.split()) for text in texts], np.int64)
    if not lengths.size:
        raise InputError("length_statistics: no texts")
    low, median, high = np.quantile(lengths, [0.05, 0.5, 0.95])
    return LengthStatistics(
        texts=len(lengths),
        mean=float(lengths.mean()),
        standard_deviation=float(lengths.std(ddof=1)) if len(lengths) > 1 else 0.0,
        shortest=int(lengths.min()),
        percentile_5=float(low),
        median=float(median),
        percentile_95=float(high),
        longest=int(lengths.max()),
        empty=int((lengths == 0).sum()),
    )


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _counts(texts: Iterable[str], n: int) -> "Counter[tuple[str, ...]]":
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return Counter(gram for text in texts for gram in _grams(text, n))
