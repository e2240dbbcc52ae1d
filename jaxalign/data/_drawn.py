"""Examples that are not one list of arrays, but drawn anew each time a batch uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jaxalign.data._example import Example
from jaxalign.data._plan import Mixture, Sizes

__all__ = ["DrawnExamples", "Examples"]


class DrawnExamples(Protocol):
    """N examples, each a pure function of its index and of how often it was used before: so batch k stays a pure
    function of (seed, k), and where a run stands stays one integer."""

    @property
    def sizes(self) -> Sizes:
        """The most that each example can take of a row."""
        ...

    @property
    def mixture(self) -> Mixture | None:
        """How several sources are mixed; None = in proportion to their sizes."""
        ...

    @property
    def largest_token(self) -> int:
        """The largest token id of any draw."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def draw(self, index: int, used: int) -> Example:
        """Example ``index`` at its ``used``-th use, counted from 0."""
        ...

    def fingerprint(self) -> str:
        """The name of all draws by what decides them."""
        ...


Examples = Sequence[Example] | DrawnExamples
"""Examples as a list, or drawn."""
