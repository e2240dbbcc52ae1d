"""Two outputs side by side, who compares them, and what is said: what judges, people and win rates have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Comparison", "Judge", "Preference", "Verdict"]

Preference = Literal["first", "second", "tie", "invalid"]
"""Of the two as they were shown; "invalid": an answer that names neither, which is counted and left out."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two outputs to one prompt, in the order in which they are shown."""

    prompt: str
    first: str
    second: str
    axis: str = "overall"
    """What is asked about them: "overall", or an axis such as "accuracy", "coherence", "coverage"."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge said of one comparison."""

    preference: Preference
    text: str = ""
    """The judge's own words, kept so that anybody can read why."""
    prompt_tokens: int = 0
    """Tokens the judge read, where it counts them."""
    completion_tokens: int = 0
    """Tokens it wrote."""


class Judge(Protocol):
    """Somebody who compares: an endpoint, a local model, a reward model, people."""

    @property
    def name(self) -> str:
        """Who it is, such as the model's name."""
        ...

    @property
    def version(self) -> str:
        """What decides its verdicts beside the name (prompt, temperature ...): part of a cached verdict's key."""
        ...

    def judge(self, comparisons: Sequence[Comparison], on_verdict: Callable[[int, Verdict], None]) -> None:
        """Compare them all; ``on_verdict(index, verdict)`` is called for each as soon as it is there, in any order.

        A comparison that cannot be judged now (an endpoint that stays away) raises after the others are done: what was
        told to ``on_verdict`` is then kept, and nothing is asked twice.
        """
        ...
