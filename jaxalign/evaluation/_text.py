"""Measures of generated text that need no model."""

from collections.abc import Iterable

__all__ = ["distinct_n"]


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct word n-grams over all word n-grams of the texts together (Li et al. 2016, arXiv 1510.03055).

    Words are lower-cased and split at white space; n-grams do not cross texts. Between 0 and 1, 0 where no text has
    ``n`` words. It falls as texts are added: compare only sets of equal size and length.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        words = text.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0
