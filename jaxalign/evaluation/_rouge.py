"""Words that a text shares with another: ROUGE against a reference, and what is copied from a source."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError

__all__ = ["copied_share", "rouge"]


def rouge(
    predictions: Sequence[str], references: Sequence[str], *, kinds: Sequence[str] = ("rouge1", "rouge2", "rougeL")
) -> dict[str, np.ndarray]:
    """ROUGE F-measures (Lin 2004) of each prediction against its reference, by the ``rouge-score`` package.

    F = 2 P R / (P + R): with words or n-grams in common over those of the prediction (P) and of the reference (R);
    for "rougeL" what is in common is the longest common subsequence of words. Words are runs of a-z and 0-9 after
    lower-casing, Porter-stemmed, as published numbers for English summaries have it: other scripts score 0. A text
    without words (or n-grams) scores 0.

    Args:
        predictions: ``N`` texts.
        references: ``N`` texts, one a prediction.
        kinds: "rouge1" to "rouge9", "rougeL", or "rougeLsum" (a sentence a line).

    Returns:
        For each kind one F-measure a pair, float64 ``[N]``, in [0, 1].

    Raises:
        ValueError: lengths that differ or an unknown kind.
        InputError: ``rouge-score`` is not installed (the ``eval`` extra).
    """
    _require_pairs(predictions, references, "predictions", "references")
    scorer = _load_rouge_scorer().RougeScorer(list(kinds), use_stemmer=True)
    scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {kind: np.array([score[kind].fmeasure for score in scores], np.float64) for kind in kinds}


def copied_share(texts: Sequence[str], sources: Sequence[str], n: int = 3) -> np.ndarray:
    """Of each text's word n-grams, the share that also occurs in its source: float64 ``[N]``, in [0, 1].

    Words are lower-cased and split at white space, punctuation belongs to them. An n-gram that a text repeats counts
    every time; 0 where the text has fewer than ``n`` words. Raises ``ValueError`` for lengths that differ or ``n < 1``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _require_pairs(texts, sources, "texts", "sources")
    shares = np.zeros(len(texts), np.float64)
    for index, (text, source) in enumerate(zip(texts, sources, strict=True)):
        grams, known = _word_ngrams(text, n), set(_word_ngrams(source, n))
        if grams:
            shares[index] = sum(gram in known for gram in grams) / len(grams)
    return shares


def _word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _require_pairs(first: Sequence[str], second: Sequence[str], first_name: str, second_name: str) -> None:
    if len(first) != len(second):
        raise ValueError(f"{len(first)} {first_name} but {len(second)} {second_name}")


def _load_rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer
    except ModuleNotFoundError as error:
        raise InputError("rouge-score is not installed; run: pip install 'jaxalign[eval]'") from error
    return rouge_scorer
