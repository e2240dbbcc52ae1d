"""Token ids laid out as one example: a prompt, and the answers that share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jaxalign.data._example import Example

__all__ = ["answers_example"]


def answers_example(
    prompt: Sequence[int],
    answers: Sequence[npt.ArrayLike],
    *,
    record_id: int = 0,
    pairs: npt.ArrayLike = (),
    supervised: Sequence[npt.ArrayLike] | None = None,
    branched: bool = True,
    **extras: Any,
) -> Example:
    """``[prompt | answer 1 | ... | answer k]`` from token ids, such as those a sampler returned.

    Positions restart after the prompt, answers do not see each other, and the first target of each answer has the last
    prompt token as its source. A token without a source (the first of all, where the prompt is empty) is not
    supervised. Nothing is added: an answer's EOS is among its ids or it has none.

    Args:
      prompt: n ids.
      answers: k lists of ids, each of at least one.
      record_id: the example's number.
      pairs: (chosen, rejected) as indices into ``answers``.
      supervised: which tokens of each answer are targets; all by default.
      branched: False lays a single answer out as plain text (branch 0).
      extras: further fields of :class:`Example`, e.g. ``pair_extras``.

    Raises:
      ValueError: an answer without a supervised token.
    """
    size = len(prompt)
    tokens, positions, branch = [np.asarray(prompt, np.int32)], [np.arange(size)], [np.zeros(size, int)]
    source, targets, sequence = [], [], []
    offset = size
    for slot, answer in enumerate(answers):
        ids = np.asarray(answer, np.int32)
        before = np.arange(offset - 1, offset - 1 + len(ids))
        before[:1] = size - 1  # the last prompt token, or -1 where there is none
        chosen = before >= 0 if supervised is None else np.asarray(supervised[slot], bool) & (before >= 0)
        if not chosen.any():
            raise ValueError(f"answer {slot}: no supervised token")
        tokens.append(ids)
        positions.append(np.arange(size, size + len(ids)))
        branch.append(np.full(len(ids), slot + 1 if branched else 0))
        source.append(before[chosen])
        targets.append(ids[chosen])
        sequence.append(np.full(int(chosen.sum()), slot))
        offset += len(ids)

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts).astype(np.int32)

    return Example(
        record_id=record_id,
        tokens=join(tokens),
        positions=join(positions),
        branch=join(branch),
        source_index=join(source),
        targets=join(targets),
        target_sequence=join(sequence),
        sequences=len(answers),
        pairs=np.asarray(pairs, np.int32).reshape(-1, 2),
        **extras,
    )
