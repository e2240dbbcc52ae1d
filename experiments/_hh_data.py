"""Dialogues of one turn with a preferred and a rejected answer, of people: what is trained on, and what is asked.

``reviews`` are dialogues in miniature, of the packaged film reviews: the human's turn is the opening words of a review,
the chosen answer a sentence of a positive text, the rejected one of a negative text, all written by people. What makes
an answer good is its sentiment alone; it has no bearing on the question.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.assets.movie_reviews import MovieReviews, Reviews, first_words, text_key
from jaxalign import data
from jaxalign.errors import InputError

__all__ = ["HUMAN", "SHOTS", "Dialogue", "Dialogues", "load_dialogues", "review_dialogues"]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SHOTS = 2
"""Dialogues that the base model is shown."""
OPENING_WORDS = 4
ANSWER_WORDS = (4, 12)


@dataclass(frozen=True)
class Dialogue:
    """``prompt`` ends with "\\n\\nAssistant:", answers begin with a space."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def single_turn(self) -> bool:
        """Whether the human speaks once."""
        return self.prompt.count(HUMAN) == 1


@dataclass(frozen=True)
class Dialogues:
    """No prompt is in two parts."""

    train: Sequence[Dialogue]
    held_out: Sequence[Dialogue]
    """Of a single turn, each asking something else."""
    shots: Sequence[Dialogue]
    """Of a single turn, to show the base model; of ``train``'s source, and not in ``train``."""


def load_dialogues(
    source: str,
    held_out_source: str | None = None,
    held_out_split: str = "test",
    *,
    train: int | None,
    held_out: int,
    shot_words: int,
    seed: int,
) -> Dialogues:
    """Read and split.

    Args:
      source: "reviews" (packaged), "hh-sample" (1,156 rows beside the checkout), or a hub id or file of HH's schema.
      held_out_source, held_out_split: a hub id or file of HH's schema; None = a part of ``source``.
      train: so many dialogues; None = all.
      held_out: single-turn prompts to ask.
      shot_words: of the dialogues to show the base model, prompt and chosen answer have so many words at most.
      seed: of the order.

    Raises:
      InputError: no such source, too few dialogues.
    """
    if source == "reviews":
        from experiments.assets.movie_reviews import load_movie_reviews

        found, asked = review_dialogues(load_movie_reviews(seed), seed)
    else:
        found = asked = _shuffled(_hh(source, "train"), seed)
        if held_out_source is not None:
            asked = _shuffled(_hh(held_out_source, held_out_split), seed)
    chosen: dict[str, Dialogue] = {}
    for one in asked:
        if one.single_turn and len(chosen) < held_out:
            chosen.setdefault(one.prompt, one)
    rest = [one for one in found if one.prompt not in chosen]
    shown = [
        one for one in rest if one.single_turn and len((one.prompt + one.chosen).split()) <= shot_words
    ][:SHOTS]  # fmt: skip
    seen = {one.prompt for one in shown}
    rest = [one for one in rest if one.prompt not in seen][:train]
    if len(chosen) < held_out or len(shown) < SHOTS or not rest or (train is not None and len(rest) < train):
        raise InputError(
            f"--dialogues: {source}: {len(rest)} to train on, {len(chosen)} single turns to ask, {len(shown)} to show; "
            f"{train or 'some'}, {held_out} and {SHOTS} are needed"
        )
    return Dialogues(rest, list(chosen.values()), shown)


def review_dialogues(reviews: MovieReviews, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """(to train on, to ask): questions are of the parts ``sft`` and ``prompts``, answers of the parts ``reward``.

    A text is in one dialogue; no question of the first list is in the second. The judge's parts are not read.
    """
    generator = np.random.default_rng(seed)
    answers = []
    for label in (1, 0):
        texts = list(dict.fromkeys([*_sentences(reviews.reward, label), *_short(reviews.reward_sentences, label)]))
        answers.append([texts[index] for index in generator.permutation(len(texts))])
    pairs = list(zip(*answers, strict=False))
    asked = list(dict.fromkeys(_openings(reviews.prompts)))
    known = set(asked)
    trained = [one for one in dict.fromkeys(_openings(reviews.sft)) if one not in known]
    held = pairs[: len(pairs) // 8]
    return _joined(trained, pairs[len(held) :]), _joined(asked, held)


def _joined(openings: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Dialogue]:
    return [
        Dialogue(f"{HUMAN} {opening} ...{ASSISTANT}", f" {good}", f" {bad}")
        for opening, (good, bad) in zip(openings, pairs, strict=False)
    ]


def _openings(reviews: Reviews) -> Iterator[str]:
    for text in reviews.texts:
        opening = first_words(text, OPENING_WORDS)
        if _plain(opening):
            yield opening


def _sentences(reviews: Reviews, label: int) -> Iterator[str]:
    """The first and the last sentence of every review of a label, where it is short."""
    for text, own in zip(reviews.texts, reviews.labels, strict=True):
        if own == label:
            parts = re.split(r"(?<=[.!?])\s+", text)
            for part in dict.fromkeys((parts[0], parts[-1])):
                if _fits(part) and part[-1] in ".!?":
                    yield part


def _short(sentences: Reviews, label: int) -> Iterator[str]:
    for text, own in zip(sentences.texts, sentences.labels, strict=True):
        if own == label and _fits(text):
            yield text


def _fits(text: str) -> bool:
    return _plain(text) and ANSWER_WORDS[0] <= len(text.split()) <= ANSWER_WORDS[1] and bool(text_key(text))


def _plain(text: str) -> bool:
    """What every tokenizer of ours reads and gives back unchanged."""
    return text.isascii() and text.isprintable() and '"' not in text


def _hh(source: str, split: str) -> Iterator[Dialogue]:
    from experiments.assets import hh

    if source == "hh-sample":
        path = hh.packaged_sample()
        if path is None:
            raise InputError("--dialogues: hh-sample: it does not lie beside this checkout; give a file or hub id")
        source = str(path)
    # Pairs that part before the last answer, and the few empty answers, are left out.
    for row in data.load_dataset(source, split, on_bad_row="skip"):
        yield Dialogue(row["prompt"], row["chosen"], row["rejected"])


def _shuffled(dialogues: Iterator[Dialogue], seed: int) -> list[Dialogue]:
    found = list(dialogues)
    return [found[index] for index in np.random.default_rng(seed).permutation(len(found))]
