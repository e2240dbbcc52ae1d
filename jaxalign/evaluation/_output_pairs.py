"""From records to pairs: which two outputs of which systems are compared."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxalign import data
from jaxalign.errors import InputError

__all__ = ["Content", "Pair", "read_pairs"]

Content = str | list[dict[str, str]]
"""A text, or messages of ``role`` and ``content``."""


@dataclass(frozen=True)
class Pair:
    """Two systems' outputs to one prompt, in the order of the file, not the one shown."""

    row: int
    """The record's number in its file, counted from 1: pairs of one row share their prompt."""
    prompt: Content
    systems: tuple[str, str]
    outputs: tuple[Content, Content]
    place: str = field(default="", compare=False)
    """Where the record came from, for messages."""


def read_pairs(path: str | Path, *, ours: str | None = None, keep_equal: bool = False) -> tuple[list[Pair], int]:
    """The pairs of a file of records (``data.named_outputs``), and how many of them are, or would be, the same text
    twice: left out, or with ``keep_equal`` not.

    Every two systems of a row make a pair, or with ``ours`` that one and each other. A pair's first system is ``ours``,
    else the one that the file names first.

    Raises:
        InputError: naming file, row and field; or no pair is left.
    """
    records = data.load_records(path)
    rank: dict[str, int] = {}
    pairs: list[Pair] = []
    same = 0
    for index, record in enumerate(records):
        place = records.place(index)
        prompt, outputs = data.named_outputs(record, place)
        if ours is not None and ours not in outputs:
            raise InputError(f"{place}: no output of {ours!r} (--ours); it has {', '.join(outputs)}")
        for name in ([ours] if ours is not None else []) + list(outputs):
            rank.setdefault(name, len(rank))
        for one, other in itertools.combinations(sorted(outputs, key=rank.__getitem__), 2):
            if ours not in (None, one):
                continue
            if outputs[one] == outputs[other]:
                same += 1
                if not keep_equal:
                    continue
            texts = (_plain(outputs[one]), _plain(outputs[other]))
            pairs.append(Pair(index + 1, _plain(prompt), (one, other), texts, place))
    if not pairs:
        raise InputError(f"{path}: nothing to compare: in every row the outputs are the same text")
    return pairs, same


def _plain(content: str | Sequence[Mapping[str, Any]]) -> Content:
    if isinstance(content, str):
        return content
    return [{"role": message["role"], "content": message["content"]} for message in content]
