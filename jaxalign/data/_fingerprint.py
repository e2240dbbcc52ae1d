"""The name of tokenised data by its content, to store what was computed from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from jaxalign.data._example import Example

__all__ = ["fingerprint"]

_FIELDS = ("tokens", "positions", "branch", "source_index", "targets", "target_sequence")


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 (64 hex digits) over what a model computes from: tokens, visibility and targets, example by example.

    It changes with the data, the tokenizer, the chat template, the limits and the order; not with record ids, labels,
    margins, pairs or cached arrays, which change no log-prob.
    """
    digest = hashlib.sha256()
    for example in examples:
        for name in _FIELDS:
            array = np.ascontiguousarray(getattr(example, name), "<i4")
            digest.update(np.int64(array.size).astype("<i8").tobytes())
            digest.update(array.tobytes())
    return digest.hexdigest()
