"""What a table of Chain of Hindsight is measured on: a model, records with feedback, and scores of held-out prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from experiments._stages import Report
from jaxalign import data, models, recipes, sharding
from jaxalign.data import Example, FeedbackKind, FeedbackPrompts
from jaxalign.models import ModelConfig

__all__ = ["AXIS", "Axis", "Measured", "Published", "Task", "forgetting", "load_model", "numbers", "text_windows"]

Params = Any
AXIS = "axis: "
"""Before an axis's name in what was measured."""
Measured = dict[str, list[Any]]
"""Name -> one value a held-out item, in the same order for every model; "score" is what the table is about, "score, bad
words" the same after the words of a bad output, an ``Axis``'s name what it scored. "output" are texts, all else
numbers."""


@dataclass(frozen=True)
class Axis:
    """What two outputs are compared on: the higher score wins, if it is higher by more than ``margin``."""

    name: str
    judge: str
    """What the score is, in words."""
    margin: float
    """Scores that are no further apart are a tie."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the paper says of such a table."""

    source: str
    """Where the scores stand."""
    pairwise: str = ""
    """Where the pairwise table stands."""
    scores: Mapping[str, str] = field(default_factory=dict)
    """Row -> its score."""


def numbers(measured: Measured) -> list[str]:
    """Names of what was measured in numbers, axes apart."""
    return [name for name, values in measured.items() if name != "output" and not name.startswith(AXIS)]


class Task(Protocol):
    """A data set, a model to start from, and a measure."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def start(self) -> Params: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def records(self) -> Sequence[Any]:
        """With feedback, to train on."""
        ...

    @property
    def text(self) -> Sequence[Example]:
        """Windows of the pretraining text."""
        ...

    @property
    def templates(self) -> str: ...
    @property
    def kind(self) -> FeedbackKind: ...
    @property
    def inputs(self) -> Mapping[str, Any]:
        """What decides all of this, for the names of stages."""
        ...

    @property
    def score(self) -> str:
        """What "score" is, in words."""
        ...

    @property
    def unit(self) -> str:
        """What "score" is, in a word or two with its unit."""
        ...

    @property
    def setting(self) -> str:
        """Model and data, in words."""
        ...

    @property
    def paper(self) -> Published: ...
    @property
    def axes(self) -> Sequence[Axis]:
        """Of the pairwise table; none, no such table. ``measure`` has each under ``"axis: " + name``."""
        ...

    @property
    def items(self) -> Sequence[str]:
        """The held-out items, in words."""
        ...

    @property
    def decimals(self) -> int:
        """Digits of it in a table."""
        ...

    def measure(
        self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report, details: bool = True
    ) -> Measured:
        """The scores of a model that is asked by ``prompts``; None: as it was before any training.

        ``details``: also what costs much and says little of one seed more.
        """
        ...


def load_model(name: str) -> tuple[ModelConfig, Params, Any]:
    """ "smollm2" or "glassllm" (packaged), or a folder or hub id: config, parameters, tokenizer."""
    if name == "smollm2":
        from experiments.assets import smollm2

        return smollm2.load()
    if name == "glassllm":
        from experiments.assets import glassllm

        return glassllm.load()
    config, params = models.load_pretrained(name, dtype="float32", mesh=sharding.make_mesh())
    return config, params, recipes.load_tokenizer(name)


@dataclass(frozen=True)
class Windows:
    """Plain text to learn from, and to measure forgetting on."""

    train: list[Example]
    held_out: list[Example]


def text_windows(texts: Sequence[str], tokenizer: Any, length: int, *, held_out: int = 32) -> Windows:
    """Windows of documents; the last ``held_out`` documents are kept for measuring, a window each."""
    records = [{"text": text} for text in texts]
    train, _ = data.text_windows(records[:-held_out], tokenizer, length=length)
    kept, _ = data.text_windows(records[-held_out:], tokenizer, length=length)
    first = {example.record_id: example for example in reversed(kept)}
    return Windows(train, [first[index] for index in sorted(first)])


def forgetting(config: ModelConfig, params: Params, held_out: Sequence[Example]) -> list[float]:
    """Nats a token of held-out plain text, a window each: what a model knew and may have forgotten."""
    rows = recipes.example_log_probs(config, params, held_out, batch_size=16)
    return [float(-np.mean(row)) for row in rows]
