"""One tokenised record: which token is seen by whom, and which hidden state predicts which target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError

Array = np.ndarray

__all__ = ["Example", "ExtraSpec", "extra_specs", "unshare", "with_extras"]

LEVELS = ("token", "target", "pair", "sequence")
_NO_PAIRS = np.zeros((0, 2), np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A tokenised record of ``n`` tokens, ``m`` supervised targets, ``q`` sequences and ``p`` preference pairs.

    A preference record is one example ``[prompt | chosen | rejected]``: positions restart after the prompt, branches
    are 0, 1, 2, and the first target of *each* answer is predicted from the last prompt token. Masks are explicit:
    what is supervised is what is listed in ``targets``, whatever the token ids are.

    Raises ``ValueError`` when the arrays do not fit together.
    """

    record_id: int
    """Index of the record among those given, >= 0."""
    tokens: Array
    """``[n]`` int32 token ids."""
    positions: Array
    """``[n]`` int32, the position of each token in its own sequence (restarts after a shared prompt)."""
    branch: Array
    """``[n]`` int32, 0 = prompt or plain text (seen by all), k >= 1 = answer k (sees the prompt and itself)."""
    source_index: Array
    """``[m]`` int32, index into ``tokens`` of the token whose hidden state predicts the target."""
    targets: Array
    """``[m]`` int32, the supervised token ids."""
    target_sequence: Array
    """``[m]`` int32, sequence slot of the target: answer branch k has slot k - 1, plain text slot 0."""
    sequences: int = 1
    """q, the number of sequence slots."""
    pairs: Array = dataclasses.field(default_factory=lambda: _NO_PAIRS)
    """``[p, 2]`` int32, (chosen slot, rejected slot)."""
    token_extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Arrays ``[n, ...]`` carried beside the tokens, e.g. ``trunk``."""
    target_extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Arrays ``[m, ...]`` carried beside the targets, e.g. ``reference_log_probs``."""
    pair_extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Arrays ``[p, ...]`` carried beside the pairs, e.g. ``margin``."""
    sequence_extras: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    """Arrays ``[q, ...]`` carried beside the sequences, e.g. ``label``."""

    def __post_init__(self) -> None:
        length, supervised = self.tokens.shape[0], self.targets.shape[0]
        if self.positions.shape != (length,) or self.branch.shape != (length,):
            raise ValueError(f"example {self.record_id}: tokens, positions and branch differ in length")
        if self.source_index.shape != (supervised,) or self.target_sequence.shape != (supervised,):
            raise ValueError(f"example {self.record_id}: targets, source_index and target_sequence differ in length")
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"example {self.record_id}: pairs must be [p, 2]")
        if supervised and not (self.source_index.min() >= 0 and self.source_index.max() < length):
            raise ValueError(f"example {self.record_id}: a source_index is outside the example")
        for name, slots in (("target_sequence", self.target_sequence), ("pairs", self.pairs)):
            if slots.size and not (slots.min() >= 0 and slots.max() < self.sequences):
                raise ValueError(
                    f"example {self.record_id}: {name} names a sequence slot outside 0..{self.sequences - 1}"
                )
        for level in LEVELS:
            for name, value in self.extras(level).items():
                if value.shape[:1] != (self.count(level),):
                    raise ValueError(
                        f"example {self.record_id}: {level} extra {name!r} has shape {value.shape}, "
                        f"its first axis must be {self.count(level)}"
                    )

    def count(self, level: str) -> int:
        """Number of items at ``level``: "token" n, "target" m, "pair" p, "sequence" q."""
        return {
            "token": self.tokens.shape[0],
            "target": self.targets.shape[0],
            "pair": self.pairs.shape[0],
            "sequence": self.sequences,
        }[level]

    def extras(self, level: str) -> Mapping[str, Array]:
        """The extra arrays carried at ``level``."""
        extras: Mapping[str, Array] = getattr(self, f"{level}_extras")
        return extras

    def replace(self, **changes: Any) -> Example:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class ExtraSpec:
    """Name, level ("token", "target", "pair", "sequence"), trailing shape and dtype of one extra array."""

    name: str
    level: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def extra_specs(examples: Sequence[Example]) -> tuple[ExtraSpec, ...]:
    """The extra arrays that all ``examples`` carry, sorted by name.

    Raises ``InputError`` when one example carries other extras than the first, or one name is used at two levels.
    """

    def specs(example: Example) -> tuple[ExtraSpec, ...]:
        found = [
            ExtraSpec(name, level, tuple(value.shape[1:]), value.dtype)
            for level in LEVELS
            for name, value in example.extras(level).items()
        ]
        return tuple(sorted(found, key=lambda spec: spec.name))

    if not examples:
        return ()
    first = specs(examples[0])
    if len({spec.name for spec in first}) != len(first):
        raise InputError(f"record {examples[0].record_id}: one extra name is used at two levels")
    for example in examples[1:]:
        if (other := specs(example)) != first:
            names = sorted({spec.name for spec in set(first) ^ set(other)})
            raise InputError(
                f"record {example.record_id}: field {', '.join(names)} must be present in every record, "
                f"with one shape and type, or in none"
            )
    return first


def unshare(example: Example) -> tuple[Example, ...]:
    """The per-answer rows of an example: row r is ``[prompt | answer r]``, one row a sequence slot.

    Slot numbers, pairs, and pair and sequence extras stay those of the whole example, so that per-slot sums over the
    rows are the sums of the shared layout. Plain text (branch 0 only) is its own single row.
    """
    rows = []
    for slot in range(example.sequences):
        token_mask = (example.branch == 0) | (example.branch == slot + 1)
        target_mask = example.target_sequence == slot
        new_index = np.cumsum(token_mask, dtype=np.int32) - 1
        rows.append(
            example.replace(
                tokens=example.tokens[token_mask],
                positions=example.positions[token_mask],
                branch=example.branch[token_mask],
                source_index=new_index[example.source_index[target_mask]],
                targets=example.targets[target_mask],
                target_sequence=example.target_sequence[target_mask],
                token_extras={name: value[token_mask] for name, value in example.token_extras.items()},
                target_extras={name: value[target_mask] for name, value in example.target_extras.items()},
            )
        )
    return tuple(rows)


def with_extras(
    examples: Sequence[Example],
    *,
    token: Mapping[str, Sequence[Array]] | None = None,
    target: Mapping[str, Sequence[Array]] | None = None,
    pair: Mapping[str, Sequence[Array]] | None = None,
    sequence: Mapping[str, Sequence[Array]] | None = None,
) -> list[Example]:
    """New examples that also carry these arrays, one array an example under each name.

    ``token={"trunk": [array [n_i, D], ...]}`` attaches cached trunk activations,
    ``target={"reference_log_probs": [array [m_i], ...]}`` cached reference log-probs (nats).
    Raises ``ValueError`` when there is not exactly one array an example or its first axis does not fit.
    """
    result = list(examples)
    for level, arrays in zip(LEVELS, (token, target, pair, sequence), strict=True):
        for name, values in (arrays or {}).items():
            if len(values) != len(result):
                raise ValueError(f"{level} extra {name!r}: {len(values)} arrays for {len(result)} examples")
            result = [
                example.replace(**{f"{level}_extras": {**example.extras(level), name: np.asarray(value)}})
                for example, value in zip(result, values, strict=True)
            ]
    return result
