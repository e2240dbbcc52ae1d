"""Two transparent scorers of summaries by the content words of the document: judges (S) and (C) without a model."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments._stages import digest
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import Judge, RewardJudge

__all__ = ["ContentWords", "content_word_judges"]


@dataclass(frozen=True)
class ContentWords:
    """How rare words are, of a collection of documents.

    A content word is one that fewer than a tenth of the documents have; its weight is idf(w) = ln((n + 1) / (n_w + 1)),
    with n documents of which n_w have it. Words are runs of a-z and 0-9 after lower-casing.
    """

    documents: int
    having: Counter[str]

    @classmethod
    def of(cls, documents: Sequence[str]) -> "ContentWords":
        """Count them."""
        return cls(len(documents), Counter(word for text in documents for word in set(_words(text))))

    def save(self, path: Path) -> None:
        """As JSON."""
        value = {"documents": self.documents, "having": dict(sorted(self.having.items()))}
        path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "ContentWords":
        """What ``save`` wrote. Raises ``InputError``: it is not there, or it is something else."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(value["documents"]), Counter(value["having"]))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; tldr_summarization writes it") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: no counts of words") from None

    @property
    def version(self) -> str:
        """Changes with the collection, and with how weights are summed."""
        return digest("exact sums", self.documents, sorted(self.having.items()))

    def coverage(self, document: str, summary: str) -> float:
        """(S): R, the share of the document's content words, by weight, that the summary has; 0 where it has none."""
        content = self._content(document)
        whole = self._weight(content)
        return self._weight(content & set(_words(summary))) / whole if whole else 0.0

    def precise_coverage(self, document: str, summary: str) -> float:
        """(C): 2 P R / (P + R), P the share of the summary's words that are content words of the document, each once.

        So a word that is unimportant, repeated or not in the document costs as much as any other.
        """
        words = _words(summary)
        useful = len(self._content(document) & set(words))
        if not useful:
            return 0.0
        precision, recall = useful / len(words), self.coverage(document, summary)
        return 2 * precision * recall / (precision + recall)

    def _weight(self, words: set[str]) -> float:
        """Of all of them together; exact, for sets have another order in every process, and equal sums must tie."""
        return math.fsum(math.log((self.documents + 1) / (self.having[word] + 1)) for word in words)

    def _content(self, text: str) -> set[str]:
        return {word for word in _words(text) if 10 * self.having[word] < self.documents}


def content_word_judges(words: ContentWords) -> dict[str, Judge]:
    """Judges "S" and "C"; the larger score wins, equal scores are a tie."""

    def judge(name: str, score: Callable[[str, str], float]) -> RewardJudge:
        def reward(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
            return np.array([score(*pair) for pair in zip(prompts, completions, strict=True)], np.float64)

        return RewardJudge(reward, name=name, version=words.version)

    return {"S": judge("content words", words.coverage), "C": judge("content words, F-measure", words.precise_coverage)}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
