"""People as raters: a file of blind, shuffled questions to fill in, and its answers read back."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign import data
from jaxalign.errors import InputError
from jaxalign.recipes._journal import lines_of, write_whole
from jaxalign.recipes._verdicts import Answers, Comparison

__all__ = ["SKIP", "PeopleAsk", "Sheet", "blind_order"]

PeopleAsk = Literal["comparisons", "ratings"]
SKIP = "skip"


class Sheet:
    """Questions to people, one a row, in an order that tells nothing.

    Of comparisons a row has ``first``, ``second`` and an empty ``verdict``: first, second, tie or skip. Of ratings it
    has a ``response`` and an empty ``rating``, a number or skip; the responses to a prompt stand together. Nothing in
    the file says which response was sampled first.
    """

    def __init__(self, path: Path, questions: Sequence[tuple[int, Comparison | int]], texts: Sequence[Answers]) -> None:
        """A sheet of ``questions`` in this order: (prompt, comparison) or (prompt, response), indices into ``texts``.

        Raises:
            InputError: a name that ends neither with .jsonl nor with .csv, or no question.
        """
        if not questions:
            raise InputError("nothing to ask people: no prompt has two different responses that say something")
        if path.suffix not in (".jsonl", ".csv"):
            raise InputError(f"--sheet: {path}: must end with .jsonl or .csv")
        self.path, self.questions, self._texts = path, list(questions), texts

    def write(self) -> None:
        """Write the file, nothing filled in."""
        rows = [self._row(number) for number in range(len(self.questions))]
        if self.path.suffix == ".jsonl":
            write_whole(self.path, lines_of(rows))
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())

    def read(self) -> tuple[list[Any], int]:
        """The answers in the order of the questions, and how many of them are not there yet (None).

        An answer is a verdict, a rating (float) or "skip". Rows may be in any order.

        Raises:
            InputError: naming file and row: an answer that is none, a row whose texts are not those of its number.
        """
        records = data.load_records(self.path)
        answers: list[Any] = [None] * len(self.questions)
        seen: set[int] = set()
        for index, record in enumerate(records):
            place = records.place(index)
            number = _number(record.get("number"))
            if number is None or number != int(number) or not 1 <= number <= len(self.questions):
                raise InputError(f"{place}: field 'number': expected 1 to {len(self.questions)}")
            at = int(number) - 1
            if at in seen:
                raise InputError(f"{place}: field 'number': {at + 1} is there twice")
            seen.add(at)
            *asked, answer_field = self._row(at)
            for field in asked[1:]:
                if _words(record.get(field)) != _words(self._row(at)[field]):
                    raise InputError(f"{place}: field {field!r}: not the text that question {at + 1} has in this run")
            answers[at] = self._answer(record.get(answer_field), answer_field, place)
        return answers, sum(answer is None for answer in answers)

    def _row(self, number: int) -> dict[str, Any]:
        prompt, asked = self.questions[number]
        texts = self._texts[prompt]
        row = {"number": number + 1, "prompt": _readable(texts.prompt)}
        if isinstance(asked, Comparison):
            return row | {
                "first": texts.responses[asked.first], "second": texts.responses[asked.second], "verdict": None
            }  # fmt: skip
        return row | {"response": texts.responses[asked], "rating": None}

    def _answer(self, value: Any, field: str, place: str) -> Any:
        word = value.strip().casefold() if isinstance(value, str) else value
        if word is None or word == "":
            return None
        if word == SKIP:
            return SKIP
        if field == "verdict":
            if word in ("first", "second", "tie"):
                return word
            raise InputError(f"{place}: field 'verdict': expected first, second, tie or skip, got {value!r:.40}")
        found = _number(word)
        if found is None:
            raise InputError(f"{place}: field 'rating': expected a number or skip, got {value!r:.40}")
        return found


def blind_order(texts: Sequence[Answers], comparisons: Sequence[Sequence[Comparison]] | None, seed: int) -> list[Any]:
    """The questions in an order drawn from the seed: comparisons over all prompts, or responses prompt by prompt."""
    generator = np.random.default_rng([seed, 0x5EE7])
    questions: list[Any]
    if comparisons is not None:
        questions = [(prompt, comparison) for prompt, some in enumerate(comparisons) for comparison in some]
        return [questions[index] for index in generator.permutation(len(questions))]
    questions = []
    for prompt in generator.permutation(len(texts)):
        usable = texts[prompt].usable
        if len(usable) > 1:
            questions += [(int(prompt), usable[index]) for index in generator.permutation(len(usable))]
    return questions


def _number(value: Any) -> float | None:
    """A finite number, or the text of one, as spreadsheets write it."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def _words(text: Any) -> list[str] | None:
    """What a spreadsheet keeps of a text: line breaks may become others."""
    return text.split() if isinstance(text, str) else None


def _readable(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
