"""Chains of feedback and outputs, drawn anew each time a record is used: the data of Chain of Hindsight."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chain_sizes import ChainSizes
from jaxalign.data._chain_writer import ChainWriter, Mark, Words, Written
from jaxalign.data._example import Example
from jaxalign.data._feedback_records import RatedOutputs
from jaxalign.data._plan import Mixture, Sizes
from jaxalign.data._templates import FeedbackKind, Marker
from jaxalign.errors import InputError

__all__ = ["ChainExamples", "Item"]

_DRAW = 0xC0  # beside (seed, record, use): another stream than the batches'
_REMEDIES = {
    "np": "; it takes a pair with {negative} before {positive} (or --structures pn)",
    "pn": "; it takes a pair with {positive} before {negative} (or --structures np)",
    "aux": "; it takes a pair with auxiliary = true",
    "chain": "; it takes a graded template",
}
Parts = Sequence[Words | Mark]
Chain = list[tuple[Marker, Parts, bool]]


@dataclasses.dataclass(frozen=True)
class Item:
    """A record, tokenised as far as every draw has it alike."""

    rated: RatedOutputs
    prompt: Parts
    repeated: Parts
    """The prompt as it stands before a later output, where it is repeated."""
    outputs: tuple[Parts, ...]
    record_id: int
    structures: tuple[str, ...]
    """Those that are drawn of it, all of them or one."""
    only: int | None = None
    """The one output of it that this item is, where each is a sequence of its own."""

    @property
    def ratings(self) -> list[float]:
        """Of its outputs; 0 where nobody rated."""
        return [output.rating or 0.0 for output in self.rated.outputs]

    def negative(self, index: int) -> bool:
        """Whether an output is below the record's best; alone, whether it is labelled bad."""
        if not self.rated.rated:
            return False
        ratings = self.ratings
        return ratings[index] < 0.5 if len(ratings) == 1 else ratings[index] < max(ratings)

    @property
    def names(self) -> tuple[str, ...]:
        """The structures that can be drawn of it; "" = the outputs as they came, for nobody rated them."""
        if not self.rated.rated:
            return ("",)
        return self.structures if len(self.outputs) > 1 else (("n",) if self.negative(0) else ("p",))

    def own_markers(self, form: ChainFormat) -> list[Marker | None]:
        """The feedback that a record brings itself, output by output."""
        texts = [output.feedback if form.markers == "feedback" else None for output in self.rated.outputs]
        return [None if text is None else Marker(text) for text in texts]


class ChainExamples:
    """Chains of feedback and outputs as ``DrawnExamples``: structure, outputs, order and template of record i at its
    u-th use follow from (seed, i, u). Made by ``build_chains``."""

    def __init__(
        self,
        items: Sequence[Item],
        writer: ChainWriter,
        *,
        seed: int,
        limit: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self._items, self._writer, self._seed = items, writer, seed
        self._form, self._choice = writer.form, writer.choice
        self._limit = limit
        self.mixture = mixture

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, index: int, used: int) -> Example:
        """Example ``index`` at its ``used``-th use: one sequence whose outputs are supervised.

        It carries ``negative`` (bool ``[m]``): the target is of an output that stands for the worse; and ``draw``
        (int32 ``[1]``), a number of its own, so that what a loss draws for it is drawn for no other.
        """
        item = self._items[index]
        written = self._writer.write(item.prompt, self.chain(index, used), item.repeated)
        example = _example(written, item.record_id, self._limit, self._form.learn_markers)
        number = (index + used * len(self)) % 2**31
        return example.replace(sequence_extras={"draw": np.array([number], np.int32)})

    @property
    def writer(self) -> ChainWriter:
        """What writes the sequences."""
        return self._writer

    @property
    def text_kinds(self) -> frozenset[FeedbackKind]:
        """What outputs to plain texts are; those of dialogues are a dialogue's."""
        return frozenset(item.rated.kind for item in self._items if isinstance(item.rated.prompt, str))

    def chain(self, index: int, used: int) -> Chain:
        """What ``draw`` writes: each output with its marker, and whether it stands for the worse."""
        item = self._items[index]
        random = np.random.default_rng([self._seed, _DRAW, index, used])
        own = item.own_markers(self._form)
        return [
            (own[place] or marker, item.outputs[place], worse) for place, marker, worse in self._choose(item, random)
        ]

    @functools.cached_property
    def sizes(self) -> Sizes:
        """The most that each example can take of a row."""
        bounds = ChainSizes(self._writer)
        tokens, targets = np.array([bounds.largest(item) for item in self._items]).T
        if self._limit is not None:
            tokens, targets = np.minimum(tokens, self._limit), np.minimum(targets, self._limit)
        ones = np.ones_like(tokens)
        ids = np.array([item.record_id for item in self._items])
        return Sizes(tokens=tokens, targets=targets, pairs=0 * ones, sequences=ones, record_ids=ids)

    @functools.cached_property
    def largest_token(self) -> int:
        """The largest token id of any draw."""
        bounds = ChainSizes(self._writer)
        return max(bounds.largest_token(item) for item in self._items)

    def fingerprint(self) -> str:
        """The name of all draws: records and their order, tokenizer, templates, settings, limits, seed, mixture."""
        digest = hashlib.sha256()
        form = dataclasses.asdict(self._form) | {"templates": self._writer.templates.fingerprint()}
        mixture = None if self.mixture is None else [list(self.mixture.weights), self.mixture.source.tolist()]
        digest.update(json.dumps([form, self._seed, self._limit, self._writer.end, mixture], sort_keys=True).encode())
        drawn = {
            (item.rated.kind, name)
            for item in self._items
            for name in item.names
            if not all(item.own_markers(self._form))
        }
        markers = sorted({marker for key in drawn for marker in self._choice.markers(*key)})
        for text in [text for marker in markers for text in self._writer.texts(marker)]:
            digest.update(np.asarray(self._writer.following(text), "<i4").tobytes())
        for item in self._items:
            known = [(output.rating, output.feedback, output.finished) for output in item.rated.outputs]
            digest.update(json.dumps([item.rated.kind, known, item.structures, item.only]).encode())
            for parts in (item.prompt, item.repeated, *item.outputs):
                for part in parts:
                    digest.update(b"m" if isinstance(part, Mark) else b"w")
                    digest.update(np.asarray(part.ids, "<i4").tobytes())
        return digest.hexdigest()

    def _choose(self, item: Item, random: np.random.Generator) -> list[tuple[int, Marker, bool]]:
        """Which outputs in which order, the words before each, and whether it stands for the worse."""
        count = len(item.outputs)
        if not item.rated.rated:  # as they came: their own feedback says what they are
            places = count if "chain" not in self._form.weights else min(count, self._form.chain_length)
            return [(place, self._unrated(item), False) for place in range(places)]
        structure = item.structures[0]
        if len(item.structures) > 1:
            weights = np.array([self._form.weights[name] for name in item.structures])
            structure = item.structures[int(random.choice(len(weights), p=weights / weights.sum()))]
        if count == 1 or item.only is not None:
            place = item.only or 0
            return [(place, self._alone(item, item.negative(place), random), item.negative(place))]
        if structure in ("p", "n"):
            worse = structure == "n"
            chosen = int(random.choice([i for i in range(count) if item.negative(i) is worse]))
            return [(chosen, self._alone(item, worse, random), worse)]
        if structure == "chain":
            return self._graded(item, random)
        better, lower = self._pair(item, random)
        template = _draw(self._choice.pairs(item.rated.kind, structure), random)
        order = (
            [(better, False), (lower, True)] if template.order[0] == "positive" else [(lower, True), (better, False)]
        )
        return [(place, marker, worse) for (place, worse), marker in zip(order, template.markers, strict=True)]

    def _pair(self, item: Item, random: np.random.Generator) -> tuple[int, int]:
        """Two outputs of unequal rating, the better first."""
        ratings = item.ratings
        pairs = [(i, j) for i in range(len(ratings)) for j in range(len(ratings)) if ratings[i] > ratings[j]]
        return pairs[int(random.integers(len(pairs)))]

    def _graded(self, item: Item, random: np.random.Generator) -> list[tuple[int, Marker, bool]]:
        ratings = item.ratings
        first = self._pair(item, random)  # two that differ, then any others
        others = random.permutation([i for i in range(len(ratings)) if i not in first])
        chosen = [*first, *map(int, others)][: self._form.chain_length]
        if self._form.chain_order == "any":
            chosen = [chosen[place] for place in random.permutation(len(chosen))]
        else:
            chosen.sort(key=lambda i: ratings[i], reverse=self._form.chain_order == "falling")
        levels = sorted({ratings[i] for i in chosen})
        template = _draw(self._choice.graded(item.rated.kind), random)
        return [
            (i, template.marker(place, levels.index(ratings[i]), len(levels)), ratings[i] < levels[-1])
            for place, i in enumerate(chosen)
        ]

    def _alone(self, item: Item, negative: bool, random: np.random.Generator) -> Marker:
        if self._form.markers != "feedback":
            return self._choice.neutral(item.rated.kind)
        return _draw(self._choice.pairs(item.rated.kind, "n" if negative else "p"), random).markers[0]

    def _unrated(self, item: Item) -> Marker:
        """What stands before an output that nobody rated and that has no feedback of its own."""
        if all(output.feedback for output in item.rated.outputs):
            return Marker("")  # never read
        return self._choice.neutral(item.rated.kind)

    def check(self) -> None:
        """Raises ``InputError`` where a structure has no template, or a template too few grades."""
        self._choice.check_names()
        for item in self._items:
            kind = item.rated.kind
            if self._form.markers != "feedback":
                self._choice.neutral(kind)
                continue
            if not item.rated.rated:
                self._unrated(item)
                continue
            for name in item.names:
                graded = self._choice.graded(kind)
                if not (graded if name == "chain" else self._choice.pairs(kind, name)):
                    raise InputError(
                        f"templates {self._writer.templates.name}: none serves the structure {name!r} for {kind!r}"
                        + (" among --template-names" if self._form.template_names else "")
                        + _REMEDIES.get(name, "")
                    )
                most = min(len(set(item.ratings)), self._form.chain_length) if name == "chain" else 0
                for template in graded:
                    if most > len(template.grades):
                        raise InputError(
                            f"templates {self._writer.templates.name}: {template.name!r} has {len(template.grades)} "
                            f"grades for chains of {most} different ratings; give it more, or --chain-length "
                            f"{len(template.grades)}"
                        )


def _draw(templates: Sequence[Any], random: np.random.Generator) -> Any:
    return templates[int(random.integers(len(templates)))] if len(templates) > 1 else templates[0]


def _example(written: Written, record_id: int, limit: int | None, learn_markers: bool) -> Example:
    tokens = np.asarray(written.ids[:limit], np.int32)
    supervised = np.asarray(written.output[:limit])
    if learn_markers:
        supervised = supervised | np.asarray(written.marker[:limit])
    (at,) = np.nonzero(supervised[1:])  # the first token of all has nothing to predict it
    count = len(tokens)
    return Example(
        record_id=record_id,
        tokens=tokens,
        positions=np.arange(count, dtype=np.int32),
        branch=np.zeros(count, np.int32),
        source_index=at.astype(np.int32),
        targets=tokens[at + 1],
        target_sequence=np.zeros(len(at), np.int32),
        target_extras={"negative": np.asarray(written.negative[:limit])[at + 1]},
    )
