"""Rows of examples laid side by side in fixed shapes: the one thing a train step sees of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxalign.data._example import Example, ExtraSpec, unshare

PairLayout = Literal["shared", "two_rows"]

__all__ = ["Batch", "BatchShape", "PairLayout", "collate"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A batch of ``B`` rows in fixed shapes; a pytree of NumPy arrays until it is put on devices.

    Sizes: ``T`` tokens, ``S`` supervised targets, ``P`` pairs, ``Q`` sequence slots, ``E`` packed examples a row.
    In the "two_rows" layout the token- and target-level fields have one more axis of size R (answers) after B:
    ``[B, R, T]`` and ``[B, R, S]``, row r holds ``[prompt | answer r]`` with the same slot numbers, so that per-slot
    sums over R and S are those of the shared layout.
    """

    tokens: Any
    """``[B, T]`` int32 token ids."""
    positions: Any
    """``[B, T]`` int32, restarting in every example and after a shared prompt."""
    example: Any
    """``[B, T]`` int32, 0 = padding, 1..E = the packed example of the token."""
    branch: Any
    """``[B, T]`` int32, 0 = prompt or plain text, k >= 1 = answer k of its example."""
    source_index: Any
    """``[B, S]`` int32, index in 0..T-1 of the token whose hidden state predicts the target."""
    targets: Any
    """``[B, S]`` int32 supervised token ids."""
    target_mask: Any
    """``[B, S]`` bool, False = padding."""
    target_sequence: Any
    """``[B, S]`` int32, the row's sequence slot 0..Q-1 of the target."""
    pairs: Any
    """``[B, P, 2]`` int32, (chosen slot, rejected slot) of the row."""
    pair_mask: Any
    """``[B, P]`` bool."""
    sequence_mask: Any
    """``[B, Q]`` bool, True where the slot is used."""
    record_ids: Any
    """``[B, E]`` int32, the record of each packed example, -1 = none."""
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arrays by name: ``trunk`` ``[B, T, D]``, ``reference_log_probs`` ``[B, S]``, ``margin`` ``[B, P]``,
    ``label`` ``[B, Q]``, ..."""
    pretraining: Batch | None = None
    """A batch of plain text that the same step learns from beside this one, of its own number and length of rows."""
    branched: bool = dataclasses.field(default=True, metadata={"static": True})
    """Whether answers of one prompt may share a row; without them ``branch`` adds nothing to causality, and kernels
    that know only packed examples will do. Static: one value for all batches of a source."""

    def replace(self, **changes: Any) -> Batch:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The fixed sizes of one row, in items; see :class:`Batch`."""

    tokens: int
    """T."""
    targets: int
    """S."""
    pairs: int = 0
    """P; 0 where no example has a pair."""
    sequences: int = 1
    """Q."""
    examples: int = 1
    """E; 1 without packing."""
    answers: int = 1
    """R, the rows an example takes in the "two_rows" layout (unused in "shared")."""
    layout: PairLayout = "shared"
    """"shared" = ``[prompt | chosen | rejected]`` in one row, "two_rows" = one row an answer."""
    branched: bool = True
    """Whether a row may hold several answers of one prompt: some example has them and the layout is "shared"."""


def _fill(
    out: Mapping[str, Any], extras: Mapping[str, Any], specs: Sequence[ExtraSpec], row: Sequence[Example]
) -> None:
    """Writes the token- and target-level fields of one row (views ``[T]`` and ``[S]``) in place."""
    at_token = at_target = at_slot = 0
    for number, example in enumerate(row, start=1):
        tokens = slice(at_token, at_token + example.count("token"))
        targets = slice(at_target, at_target + example.count("target"))
        out["tokens"][tokens] = example.tokens
        out["positions"][tokens] = example.positions
        out["branch"][tokens] = example.branch
        out["example"][tokens] = number
        out["source_index"][targets] = example.source_index + at_token
        out["targets"][targets] = example.targets
        out["target_mask"][targets] = True
        out["target_sequence"][targets] = example.target_sequence + at_slot
        for spec in specs:
            if spec.level in ("token", "target"):
                extras[spec.name][tokens if spec.level == "token" else targets] = example.extras(spec.level)[spec.name]
        at_token, at_target, at_slot = tokens.stop, targets.stop, at_slot + example.sequences


def _nothing(example: Example) -> Example:
    """The example without tokens and targets: it only takes its number and its slots in a row it has no answer for."""
    return example.replace(
        **{name: getattr(example, name)[:0] for name in ("tokens", "positions", "branch")},
        **{name: getattr(example, name)[:0] for name in ("source_index", "targets", "target_sequence")},
        token_extras={name: value[:0] for name, value in example.token_extras.items()},
        target_extras={name: value[:0] for name, value in example.target_extras.items()},
    )


def collate(
    rows: Sequence[Sequence[Example]],
    shape: BatchShape,
    *,
    extras: Sequence[ExtraSpec] = (),
    pad_token: int = 0,
) -> Batch:
    """One batch from rows of examples; a row of several examples is packed, an empty row is padding.

    Packed examples are numbered 1..E, their sequence slots follow one another, positions are each example's own.
    ``extras`` lists the extra arrays to carry (:func:`extra_specs`). Padding: ``pad_token``, example 0, mask False,
    record id -1, extras 0. Raises ``ValueError`` when a row does not fit ``shape``.
    """
    count = len(rows)
    if shape.layout == "shared":
        lines, lead = [[row] for row in rows], (count, 1)
    else:
        lines, lead = [], (count, shape.answers)
        for row in rows:
            parts = [unshare(example) for example in row]
            if any(len(part) > shape.answers for part in parts):
                raise ValueError(f"an example has more than {shape.answers} answers")
            lines.append(
                [[part[r] if r < len(part) else _nothing(part[0]) for part in parts] for r in range(shape.answers)]
            )

    sizes = {"token": shape.tokens, "target": shape.targets, "pair": shape.pairs, "sequence": shape.sequences}
    fields: dict[str, Any] = {
        name: np.zeros((*lead, shape.tokens), np.int32) for name in ("positions", "example", "branch")
    }
    fields["tokens"] = np.full((*lead, shape.tokens), pad_token, np.int32)
    for name in ("source_index", "targets", "target_sequence"):
        fields[name] = np.zeros((*lead, shape.targets), np.int32)
    fields["target_mask"] = np.zeros((*lead, shape.targets), bool)
    more: dict[str, np.ndarray] = {
        spec.name: np.zeros(
            (*(lead if spec.level in ("token", "target") else (count,)), sizes[spec.level], *spec.shape), spec.dtype
        )
        for spec in extras
    }
    pairs = np.zeros((count, shape.pairs, 2), np.int32)
    pair_mask = np.zeros((count, shape.pairs), bool)
    sequence_mask = np.zeros((count, shape.sequences), bool)
    record_ids = np.full((count, shape.examples), -1, np.int32)

    for index, row in enumerate(rows):
        for line, examples in enumerate(lines[index]):
            used = {level: sum(example.count(level) for example in examples) for level in sizes}
            if len(examples) > shape.examples or any(used[level] > sizes[level] for level in sizes):
                raise ValueError(f"row {index} ({len(examples)} examples, {used}) does not fit {shape}")
            _fill(
                {name: value[index, line] for name, value in fields.items()},
                {spec.name: more[spec.name][index, line] for spec in extras if spec.level in ("token", "target")},
                extras,
                examples,
            )
        at_pair = at_slot = 0
        for number, example in enumerate(row):
            record_ids[index, number] = example.record_id
            pair_slice = slice(at_pair, at_pair + example.count("pair"))
            slot_slice = slice(at_slot, at_slot + example.sequences)
            pairs[index, pair_slice] = example.pairs + at_slot
            pair_mask[index, pair_slice] = True
            sequence_mask[index, slot_slice] = True
            for spec in extras:
                if spec.level in ("pair", "sequence"):
                    where = pair_slice if spec.level == "pair" else slot_slice
                    more[spec.name][index, where] = example.extras(spec.level)[spec.name]
            at_pair, at_slot = pair_slice.stop, slot_slice.stop

    if shape.layout == "shared":  # one line a row: drop the axis
        fields = {name: value[:, 0] for name, value in fields.items()}
        more.update({spec.name: more[spec.name][:, 0] for spec in extras if spec.level in ("token", "target")})
    return Batch(
        **fields,
        pairs=pairs,
        pair_mask=pair_mask,
        sequence_mask=sequence_mask,
        record_ids=record_ids,
        extras=more,
        branched=shape.branched,
    )
