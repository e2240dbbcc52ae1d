"""Chains of feedback and outputs, drawn anew each time a record is used: the data of Chain of Hindsight."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data._chain_writer import ChainWriter, Mark, Words, Written
from jaxalign.data._example import Example
from jaxalign.data._feedback_records import RatedOutputs
from jaxalign.data._plan import Mixture, Sizes
from jaxalign.data._templates import GradedTemplate, Marker, PairTemplate
from jaxalign.errors import InputError

__all__ = ["ChainExamples", "Item"]

_DRAW = 0xC0  # beside (seed, record, use): another stream than the batches'
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

    @property
    def best(self) -> float | None:
        return max(output.rating for output in self.rated.outputs) if self.rated.rated else None  # type: ignore[type-var]

    def negative(self, index: int) -> bool:
        """Whether an output is below the best; alone, whether it is labelled bad."""
        rating = self.rated.outputs[index].rating
        if rating is None:
            return False
        return rating < 0.5 if len(self.outputs) == 1 else rating < (self.best or 0)


class _Room(NamedTuple):
    """What markers take, of all that a record can have."""

    tokens: int
    """Of the longest."""
    largest: int
    """The largest token id."""
    spaces: frozenset[str]
    """The white space after them."""


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
        self._form, self._templates = writer.form, writer.templates
        self._limit = limit
        self.mixture = mixture
        self._drawable_room = functools.cache(lambda kind, name: self._measure(self._drawable(kind, name)))

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, index: int, used: int) -> Example:
        """Example ``index`` at its ``used``-th use: one sequence whose outputs are supervised.

        It carries ``negative`` (bool ``[m]``): the target is of an output below the best of its record; and ``draw``
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

    def chain(self, index: int, used: int) -> Chain:
        """What ``draw`` writes: each output with its marker, and whether it is below the best."""
        item = self._items[index]
        random = np.random.default_rng([self._seed, _DRAW, index, used])
        outputs, markers = self._choose(item, random)
        own = self._own(item)
        return [
            (own[place] or marker, item.outputs[place], item.negative(place))
            for place, marker in zip(outputs, markers, strict=True)
        ]

    @functools.cached_property
    def sizes(self) -> Sizes:
        """The most that each example can take of a row."""
        tokens, targets = np.array([self._largest(item) for item in self._items]).T
        ones = np.ones_like(tokens)
        ids = np.array([item.record_id for item in self._items])
        return Sizes(tokens=tokens, targets=targets, pairs=0 * ones, sequences=ones, record_ids=ids)

    @functools.cached_property
    def largest_token(self) -> int:
        """The largest token id of any draw."""
        largest = self._writer.end
        for item in self._items:
            parts = [part for parts in (item.prompt, item.repeated, *item.outputs) for part in parts]
            for room in (self._room(item, name) for name in self._names(item)):
                ids = [token for part in parts for some in self._spoken(item, part, room) for token in some]
                largest = max([largest, room.largest, *ids])
        return largest

    def fingerprint(self) -> str:
        """The name of all draws: records and their order, tokenizer, templates, settings, limits, seed, mixture."""
        digest = hashlib.sha256()
        form = dataclasses.asdict(self._form) | {"templates": self._templates.fingerprint()}
        mixture = None if self.mixture is None else [list(self.mixture.weights), self.mixture.source.tolist()]
        digest.update(json.dumps([form, self._seed, self._limit, self._writer.end, mixture], sort_keys=True).encode())
        drawn = {
            (item.rated.kind, name) for item in self._items for name in self._names(item) if not all(self._own(item))
        }
        markers = sorted({marker for key in drawn for marker in self._drawable(*key)})
        for text in [text for marker in markers for text in self._writer.texts(marker)]:
            digest.update(np.asarray(self._writer.following(text), "<i4").tobytes())
        for item in self._items:
            known = [output.rating for output in item.rated.outputs]
            own = [output.feedback for output in item.rated.outputs]
            finished = [output.finished for output in item.rated.outputs]
            digest.update(json.dumps([item.rated.kind, known, own, finished, item.structures]).encode())
            for parts in (item.prompt, item.repeated, *item.outputs):
                for part in parts:
                    digest.update(b"m" if isinstance(part, Mark) else b"w")
                    digest.update(np.asarray(part.ids, "<i4").tobytes())
        return digest.hexdigest()

    def _own(self, item: Item) -> list[Marker | None]:
        """The feedback that a record brings itself, output by output."""
        texts = [output.feedback if self._form.markers == "feedback" else None for output in item.rated.outputs]
        return [None if text is None else Marker(text) for text in texts]

    def _choose(self, item: Item, random: np.random.Generator) -> tuple[list[int], list[Marker]]:
        """Which outputs in which order, and the words before each."""
        count = len(item.outputs)
        if not item.rated.rated:  # as they came: their own feedback says what they are
            return list(range(count)), self._neutral(item, count)
        structure = item.structures[0]
        if len(item.structures) > 1:
            weights = np.array([self._form.weights[name] for name in item.structures])
            structure = item.structures[int(random.choice(len(weights), p=weights / weights.sum()))]
        if count == 1:
            negative = item.negative(0)
            return [0], self._alone(item, negative, random)
        best = [i for i in range(count) if not item.negative(i)]
        worse = [i for i in range(count) if item.negative(i)]
        if structure in ("p", "n") or not worse:
            chosen = int(random.choice(worse if structure == "n" and worse else best))
            return [chosen], self._alone(item, structure == "n", random)
        if structure == "chain":
            return self._graded(item, random)
        better, lower = self._pair(item, random)
        template = _draw(self._pairs(item.rated.kind, structure), random)
        order = [better, lower] if template.order[0] == "positive" else [lower, better]
        return order, list(template.markers)

    def _pair(self, item: Item, random: np.random.Generator) -> tuple[int, int]:
        """Two outputs of unequal rating, the better first."""
        ratings = [output.rating or 0.0 for output in item.rated.outputs]
        pairs = [(i, j) for i in range(len(ratings)) for j in range(len(ratings)) if ratings[i] > ratings[j]]
        return pairs[int(random.integers(len(pairs)))]

    def _graded(self, item: Item, random: np.random.Generator) -> tuple[list[int], list[Marker]]:
        ratings = [output.rating or 0.0 for output in item.rated.outputs]
        first = self._pair(item, random)  # two that differ, then any others
        others = random.permutation([i for i in range(len(ratings)) if i not in first])
        chosen = [*first, *map(int, others)][: self._form.chain_length]
        if self._form.chain_order == "any":
            chosen = [chosen[place] for place in random.permutation(len(chosen))]
        else:
            chosen.sort(key=lambda i: ratings[i], reverse=self._form.chain_order == "falling")
        levels = sorted({ratings[i] for i in chosen})
        template = _draw(self._gradeds(item.rated.kind), random)
        return chosen, [template.marker(place, levels.index(ratings[i]), len(levels)) for place, i in enumerate(chosen)]

    def _alone(self, item: Item, negative: bool, random: np.random.Generator) -> list[Marker]:
        if self._form.markers != "feedback":
            return self._neutral(item, 1)
        return [_draw(self._pairs(item.rated.kind, "n" if negative else "p"), random).markers[0]]

    def _neutral(self, item: Item, count: int) -> list[Marker]:
        if self._form.markers == "feedback" and all(output.feedback for output in item.rated.outputs):
            return [Marker("")] * count
        return [self._writer.neutral(item.rated.kind)] * count

    def _named(self, name: str) -> bool:
        return not self._form.template_names or name in self._form.template_names

    def _pairs(self, kind: str, structure: str) -> list[PairTemplate]:
        """The pair templates that serve a structure; "p" and "n" take the first words of one that begins so."""
        if structure == "aux":
            return [t for t in self._templates.pairs if t.auxiliary and kind in t.kinds and self._named(t.name)]
        first = "positive" if structure in ("p", "pn") else "negative"
        return [t for t in self._templates.of_kind(kind) if t.order[0] == first and self._named(t.name)]

    def _gradeds(self, kind: str) -> list[GradedTemplate]:
        return [t for t in self._templates.graded if kind in t.kinds and self._named(t.name)]

    def check(self) -> None:
        """Raises ``InputError`` where a structure has no template, or a template too few grades."""
        if self._form.template_names:
            known = {t.name for t in self._templates.pairs} | {t.name for t in self._templates.graded}
            for name in self._form.template_names:
                if name not in known:
                    raise InputError(
                        f"--template-names: {self._templates.name} has no template {name!r}; it has: "
                        f"{', '.join(sorted(known))}"
                    )
        for item in self._items:
            kind = item.rated.kind
            if self._form.markers != "feedback" or not item.rated.rated:
                if not all(output.feedback for output in item.rated.outputs) or self._form.markers != "feedback":
                    self._writer.neutral(kind)
                continue
            for structure in item.structures:
                alone = len(item.outputs) == 1
                name = ("n" if item.negative(0) else "p") if alone else structure
                found = self._gradeds(kind) if name == "chain" else self._pairs(kind, name)
                if not found:
                    raise InputError(
                        f"templates {self._templates.name}: none serves the structure {name!r} for {kind!r}"
                        + (" among --template-names" if self._form.template_names else "")
                    )
                if name == "chain":
                    ranks = len({output.rating for output in item.rated.outputs})
                    most = min(ranks, self._form.chain_length)
                    for template in self._gradeds(kind):
                        if most > len(template.grades):
                            raise InputError(
                                f"templates {self._templates.name}: {template.name!r} has {len(template.grades)} "
                                f"grades for chains of {most} different ratings; give it more, or --chain-length "
                                f"{len(template.grades)}"
                            )

    def _names(self, item: Item) -> tuple[str, ...]:
        """The structures that can be drawn of a record; "" = the outputs as they came."""
        if not item.rated.rated:
            return ("",)
        return item.structures if len(item.outputs) > 1 else (("n",) if item.negative(0) else ("p",))

    def _drawable(self, kind: str, name: str) -> list[Marker]:
        """Every marker that can be drawn for a structure."""
        if self._form.markers != "feedback" or not name:
            return [self._writer.neutral(kind)]
        if name == "chain":
            return [
                template.marker(place, rank, len(template.grades))
                for template in self._gradeds(kind)
                for place in (0, 1)
                for rank in range(len(template.grades))
            ]
        alone = name in ("p", "n")
        return [marker for template in self._pairs(kind, name) for marker in template.markers[: 1 if alone else 2]]

    def _measure(self, markers: Sequence[Marker]) -> _Room:
        ids = [self._writer.following(text) for marker in markers for text in self._writer.texts(marker)]
        spaces = frozenset(marker.space for marker in markers)
        return _Room(max(map(len, ids), default=0), max((max(some) for some in ids if some), default=0), spaces)

    def _room(self, item: Item, name: str) -> _Room:
        """What the markers of a record take in a structure, its own feedback among them."""
        own = self._own(item)
        rooms = [self._measure([marker for marker in own if marker])]
        if not all(own):
            rooms.append(self._drawable_room(item.rated.kind, name))
        tokens, largest, spaces = zip(*rooms, strict=True)
        return _Room(max(tokens), max(largest), frozenset().union(*spaces))

    def _spoken(self, item: Item, part: Words | Mark, room: _Room) -> list[Sequence[int]]:
        """Ids of a part, an output's after every white space that can stand before it."""
        if isinstance(part, Words):
            return [part.ids]
        spaces = set(room.spaces)
        if not any(before.ids for before in item.prompt):
            spaces.add("")  # it may be the first of all
        return [part.ids if s == " " else self._writer.encoder.following(s + part.content) for s in sorted(spaces)]

    def _size(self, item: Item, parts: Parts, room: _Room) -> tuple[int, int]:
        """The most tokens and targets that parts take, with their markers and EOS."""
        words = sum(len(part.ids) for part in parts if isinstance(part, Words))
        spoken = [self._spoken(item, part, room) for part in parts if isinstance(part, Mark)]
        outputs = sum(max(map(len, ids)) + 1 for ids in spoken)
        return words + outputs + len(spoken) * room.tokens, outputs

    def _largest(self, item: Item) -> tuple[int, int]:
        """The most tokens and targets that any draw of a record has."""
        most = {"": len(item.outputs), "p": 1, "n": 1, "chain": self._form.chain_length}
        found = []
        for name in self._names(item):
            room, places = self._room(item, name), min(len(item.outputs), most.get(name, 2))
            sizes = [self._size(item, parts, room) for parts in item.outputs]
            before, again = (self._size(item, parts, room) for parts in (item.prompt, item.repeated))
            found.append([
                before[n] + sum(sorted((size[n] for size in sizes), reverse=True)[:places]) + (places - 1) * again[n]
                for n in (0, 1)
            ])  # fmt: skip
        tokens, targets = map(max, zip(*found, strict=True))
        if self._form.learn_markers:
            targets = tokens
        return (tokens, targets) if self._limit is None else (min(tokens, self._limit), min(targets, self._limit))

    def opening(self, index: int) -> int:
        """The most tokens before an output of example ``index``: its prompt, what a person says, a marker."""
        item = self._items[index]
        said = [sum(len(part.ids) for part in itertools.takewhile(_is_words, parts)) for parts in item.outputs]
        rooms = [self._room(item, name) for name in self._names(item)]
        return max(said) + max(self._size(item, item.prompt, room)[0] + room.tokens for room in rooms)


def _is_words(part: Words | Mark) -> bool:
    return isinstance(part, Words)


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
