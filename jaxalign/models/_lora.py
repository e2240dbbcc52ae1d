"""What a low-rank adapter is, as a value."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jaxalign.errors import InputError

PARTS = ("query", "key", "value", "output", "gate", "up", "down")
"""The projections of a layer, any of which can be adapted; their order is part of how an adapter is drawn."""


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter (Hu et al. 2021, arXiv 2106.09685): x W becomes x W + scale * dropout(x) A B, W frozen.

    Which projections have one: ``targets`` are regular expressions, each matched against the whole name of a part of a
    layer (query, key, value, output, gate, up, down); ``"query|value"`` is the paper's choice, ``".*"`` all of them.
    Which layers: all from ``first_layer`` up. Adapters of the embedding and the unembedding are not offered.

    Raises:
        InputError: numbers that make no sense, or a target that is not a regular expression; names the field.
    """

    rank: int
    """r, the inner size."""
    alpha: float
    """The update is scaled by alpha / rank, or alpha / sqrt(rank)."""
    targets: tuple[str, ...] = (".*",)
    """Regular expressions of whole part names."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is zeroed while training, the rest scaled up; 0 = none."""
    rank_stabilised: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732)."""
    first_layer: int = 0
    """Layers below this one carry no adapter; a boundary of ``ModelConfig.stacks``."""

    def __post_init__(self) -> None:
        for field, valid, allowed in (
            ("rank", self.rank >= 1, "at least 1"),
            ("alpha", self.alpha > 0, "above 0"),
            ("targets", bool(self.targets), "one or more regular expressions"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("first_layer", self.first_layer >= 0, "at least 0"),
        ):
            if not valid:
                raise InputError(f"LoRA.{field}: must be {allowed}, is {getattr(self, field)}")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise InputError(f"LoRA.targets: {target!r} is not a regular expression ({error})") from None

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def parts(self, available: Iterable[str]) -> tuple[str, ...]:
        """The adapted ones of the parts that a layer has, in the order of ``PARTS``.

        Raises:
            InputError: a target that matches none of them.
        """
        names = [part for part in PARTS if part in set(available)]
        for target in self.targets:
            if not any(re.fullmatch(target, name) for name in names):
                raise InputError(f"LoRA.targets: {target!r} matches none of this model's parts: {', '.join(names)}")
        return tuple(name for name in names if any(re.fullmatch(target, name) for target in self.targets))
