"""What a study is: its pairs, its questions, its raters."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import InputError
from jaxalign.evaluation._output_pairs import Pair
from jaxalign.evaluation.study._axes import Axis

__all__ = ["INSTRUCTIONS", "Study", "rater_name", "read_raters"]

MAX_NAME = 60
INSTRUCTIONS = """\
You will see a text and two responses to it, side by side. Please read all of it, then answer the questions below.

There are no right answers: we want to know which response you prefer. Judge what is written, not how long it is. \
If you really see no difference, say so where that is offered.

Every answer is stored at once. You can stop at any time and go on later with the same link."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study, complete: everything a rater's page depends on."""

    pairs: Sequence[Pair]
    axes: tuple[Axis, ...]
    title: str = "Which response is better?"
    """Headline of the page. Name no system in it."""
    instructions: str = INSTRUCTIONS
    """What raters read first; an empty line begins a paragraph."""
    ties: bool = True
    """Whether "no difference" is an answer."""
    raters: tuple[str, ...] = ()
    """Those who are asked, each with a link; empty: whoever has the study's link joins by name."""
    ratings_per_item: int | None = None
    """Raters of each pair; None: all of them."""
    ours: str | None = None
    """The system whose wins the export counts; None: the first of each pair."""
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = self.ratings_per_item
        if wanted is not None and wanted < 1:
            raise InputError(f"--ratings-per-item: must be at least 1, got {wanted}")
        if wanted is not None and self.raters and wanted > len(self.raters):
            raise InputError(f"--ratings-per-item: {wanted} ratings of each pair need as many --raters")
        if not self.title.strip():
            raise InputError("--title: is empty")

    def settings(self) -> dict[str, Any]:
        """What must not change once judgements are there, by flag; the pairs by their content."""
        pairs = [[pair.row, pair.prompt, pair.systems, pair.outputs] for pair in self.pairs]
        return {
            "pairs": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
            "axes": [[axis.name, axis.question, axis.hint] for axis in self.axes],
            "ties": self.ties,
            "raters": list(self.raters),
            "ratings-per-item": self.ratings_per_item,
            "ours": self.ours,
            "seed": self.seed,
        }


def read_raters(names: Iterable[str]) -> tuple[str, ...]:
    """Names of raters, several in one text with commas between. Raises ``InputError`` for one that is no name."""
    found = tuple(rater_name(part) for name in names for part in name.split(","))
    if len({name.casefold() for name in found}) < len(found):
        raise InputError(f"--raters: one is named twice: {', '.join(found)}")
    return found


def rater_name(text: str) -> str:
    """A name in one spelling. Raises ``InputError`` where it is empty, too long, or holds what cannot be read."""
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > MAX_NAME:
        raise InputError(f"a rater's name has 1 to {MAX_NAME} characters, got {name!r:.80}")
    if any(unicodedata.category(letter).startswith("C") for letter in name):
        raise InputError(f"a rater's name has letters only that can be read, got {name!r:.80}")
    return name
