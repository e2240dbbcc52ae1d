"""How much room a chain takes, whatever is drawn: the most that any draw of a record has."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxalign.data._chain_writer import ChainWriter, Mark, Words
from jaxalign.data._templates import Marker

if TYPE_CHECKING:
    from jaxalign.data._chains import Item

__all__ = ["ChainSizes"]

Parts = Sequence[Words | Mark]


class _Room(NamedTuple):
    """What markers can be."""

    tokens: int
    """Tokens of the longest, with what joins it."""
    largest: int
    """The largest token id."""
    spaces: frozenset[str]
    """The white space after them."""


class ChainSizes:
    """Bounds over all draws of a record, by what can be drawn of it."""

    def __init__(self, writer: ChainWriter) -> None:
        self._writer = writer
        self._choice, self._form = writer.choice, writer.form
        self._drawable = functools.cache(
            lambda kind, name, first: self._measure(self._choice.markers(kind, name), first)
        )

    def largest(self, item: Item) -> tuple[int, int]:
        """The most tokens and targets that any draw of a record has."""
        outputs = _drawn(item)
        most = {"p": 1, "n": 1, "chain": self._form.chain_length}
        found = []
        for name in item.names:
            room = self._room(item, name)
            places = len(outputs) if not name else most.get(name, 2)
            if not name and "chain" in self._form.weights:
                places = self._form.chain_length
            places = min(len(outputs), places)
            sizes = [self._size(item, parts, room) for parts in outputs]
            before, again = (self._size(item, parts, room) for parts in (item.prompt, item.repeated))
            found.append([
                before[n] + sum(sorted((size[n] for size in sizes), reverse=True)[:places]) + (places - 1) * again[n]
                for n in (0, 1)
            ])  # fmt: skip
        tokens, targets = map(max, zip(*found, strict=True))
        return (tokens, tokens if self._form.learn_markers else targets)

    def opening(self, item: Item) -> int:
        """The most tokens before a record's first output: its prompt, what a person says, a marker."""
        said = [sum(len(part.ids) for part in itertools.takewhile(_is_words, parts)) for parts in _drawn(item)]
        rooms = [self._room(item, name) for name in item.names]
        return max(said) + max(self._size(item, item.prompt, room)[0] + room.tokens for room in rooms)

    def largest_token(self, item: Item) -> int:
        """The largest token id of any draw."""
        largest = self._writer.end
        parts = [part for parts in (item.prompt, item.repeated, *item.outputs) for part in parts]
        for room in (self._room(item, name) for name in item.names):
            ids = [token for part in parts for some in self._spoken(item, part, room) for token in some]
            largest = max([largest, room.largest, *ids])
        return largest

    def _measure(self, markers: Sequence[Marker], first: bool) -> _Room:
        """``first``: one of them may be the first of all."""
        texts = [text for marker in markers for text in self._writer.texts(marker)]
        ids = [self._writer.following(text) for text in texts]
        ids += [self._writer.encoder.first(text) for text in texts if first]
        spaces = frozenset(marker.space for marker in markers)
        return _Room(max(map(len, ids), default=0), max((max(some) for some in ids if some), default=0), spaces)

    def _room(self, item: Item, name: str) -> _Room:
        """What the markers of a record take in a structure, its own feedback among them."""
        own, first = item.own_markers(self._form), _begins(item)
        rooms = [self._measure([marker for marker in own if marker], first)]
        if not all(own):
            rooms.append(self._drawable(item.rated.kind, name, first))
        tokens, largest, spaces = zip(*rooms, strict=True)
        return _Room(max(tokens), max(largest), frozenset().union(*spaces))

    def _spoken(self, item: Item, part: Words | Mark, room: _Room) -> list[Sequence[int]]:
        """Ids of a part, an output's after everything that can stand before it."""
        if isinstance(part, Words):
            return [part.ids]
        encoder, spaces = self._writer.encoder, set(room.spaces) or {" "}
        if self._form.markers != "feedback" and any(isinstance(one, Words) and one.opens for one in item.prompt):
            spaces.add("")  # a chat template may have opened its turn with white space
        spoken: list[Sequence[int]] = [
            part.ids if s == " " else encoder.following(s + part.content) for s in sorted(spaces)
        ]
        if _begins(item):
            start = encoder.first("")
            spoken.append([*start, *part.ids] if start else encoder.first(part.content))
        return spoken

    def _size(self, item: Item, parts: Parts, room: _Room) -> tuple[int, int]:
        """The most tokens and targets that parts take, with their markers and EOS."""
        words = sum(len(part.ids) for part in parts if isinstance(part, Words))
        spoken = [self._spoken(item, part, room) for part in parts if isinstance(part, Mark)]
        outputs = sum(max(map(len, ids)) + 1 for ids in spoken)
        return words + outputs + len(spoken) * room.tokens, outputs


def _begins(item: Item) -> bool:
    """Whether an output, or the words before one, may be the first of all."""
    return not isinstance(next((part for part in item.prompt if part.ids), None), Words)


def _drawn(item: Item) -> Sequence[Parts]:
    """The outputs that can be drawn of a record."""
    return item.outputs if item.only is None else [item.outputs[item.only]]


def _is_words(part: Words | Mark) -> bool:
    return isinstance(part, Words)
