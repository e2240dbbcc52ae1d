"""From what raters said of a prompt's responses to records: ratings, or pairs of several kinds."""

import collections
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["Answers", "Comparison", "RecordForm", "comparisons_of", "make_records", "win_shares"]

RecordForm = Literal["ratings", "all", "best_worst", "adjacent"]


@dataclass(frozen=True)
class Answers:
    """A prompt and what was sampled for it."""

    prompt: Any
    responses: Sequence[str]
    finished: Sequence[bool]

    @property
    def usable(self) -> list[int]:
        """The responses that say something; no record may hold the others."""
        return [index for index, response in enumerate(self.responses) if response.strip()]


@dataclass(frozen=True)
class Comparison:
    """Two responses in the order they are shown, and the verdict on them."""

    first: int
    second: int
    verdict: str = ""
    """"first", "second", "tie", "invalid" or "skip"; empty: not judged yet."""

    @property
    def pair(self) -> tuple[int, int] | None:
        """(better, worse), where the verdict says which."""
        if self.verdict not in ("first", "second"):
            return None
        return (self.first, self.second) if self.verdict == "first" else (self.second, self.first)


def comparisons_of(answers: Answers, generator: np.random.Generator, most: int) -> list[Comparison]:
    """Which responses to compare, each pair in an order drawn at random; ``most`` of them, or all where it is 0.

    Responses with the same text are not compared.
    """
    texts = answers.responses
    pairs = [(one, other) for one, other in itertools.combinations(answers.usable, 2) if texts[one] != texts[other]]
    flips = generator.integers(0, 2, len(pairs))
    shown = [Comparison(*(pair[::-1] if flip else pair)) for pair, flip in zip(pairs, flips, strict=True)]
    if most and len(shown) > most:
        shown = [shown[index] for index in sorted(generator.permutation(len(shown))[:most])]
    return shown


def win_shares(count: int, comparisons: Sequence[Comparison]) -> list[float | None]:
    """Of each response's comparisons the share it won, a tie being half a win; None without a valid comparison."""
    points, judged = [0.0] * count, [0] * count
    for comparison in comparisons:
        if comparison.verdict not in ("first", "second", "tie"):
            continue
        for index, won in ((comparison.first, "first"), (comparison.second, "second")):
            judged[index] += 1
            points[index] += 1.0 if comparison.verdict == won else 0.5 if comparison.verdict == "tie" else 0.0
    return [points[index] / judged[index] if judged[index] else None for index in range(count)]


def make_records(
    answers: Answers,
    ratings: Sequence[float | None],
    comparisons: Sequence[Comparison] | None,
    form: RecordForm,
    counts: "collections.Counter[str]",
    *,
    margin: bool = False,
) -> list[dict[str, Any]]:
    """The records of one prompt, as every recipe reads them; what is left out is counted.

    Args:
        answers: the prompt and its responses.
        ratings: one a response; None = not rated.
        comparisons: the verdicts that the ratings come from, if they do: "all" then takes the pairs judged.
        form: "ratings" = one record with responses and ratings; or records of chosen and rejected: "all" pairs of
            unequal ratings, the "best_worst", or "adjacent" ones in the order of the ratings.
        counts: of what was left out, by reason.
        margin: write the difference of the ratings into each pair.
    """
    rated = [index for index in answers.usable if ratings[index] is not None]
    if len(rated) < 2:
        counts["prompts with fewer than two rated responses"] += 1
        return []
    value = {index: float(ratings[index] or 0.0) for index in rated}
    if form == "ratings":
        if len(set(value.values())) == 1:
            counts["prompts with equal ratings"] += 1
        return [{
            "prompt": answers.prompt,
            "responses": [answers.responses[index] for index in rated],
            "ratings": [value[index] for index in rated],
            "finished": [bool(answers.finished[index]) for index in rated],
        }]  # fmt: skip
    # Of equal ratings the earlier response comes first.
    order = sorted(rated, key=lambda index: -value[index])
    if form == "all" and comparisons is not None:
        counts["tied pairs"] += sum(comparison.verdict == "tie" for comparison in comparisons)
        pairs = [comparison.pair for comparison in comparisons if comparison.pair is not None]
    else:
        candidates = {
            "all": list(itertools.combinations(order, 2)),
            "best_worst": [(order[0], order[-1])],
            "adjacent": list(itertools.pairwise(order)),
        }[form]
        pairs = [(better, worse) for better, worse in candidates if value[better] > value[worse]]
        counts["tied pairs"] += len(candidates) - len(pairs)
    distinct = [pair for pair in pairs if answers.responses[pair[0]] != answers.responses[pair[1]]]
    counts["pairs of one text"] += len(pairs) - len(distinct)
    records = []
    for better, worse in distinct:
        record = {
            "prompt": answers.prompt,
            "chosen": answers.responses[better],
            "rejected": answers.responses[worse],
            "chosen_finished": bool(answers.finished[better]),
            "rejected_finished": bool(answers.finished[worse]),
        }
        records.append(record | ({"margin": value[better] - value[worse]} if margin else {}))
    return records
