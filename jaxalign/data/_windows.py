"""Plain text for pretraining: documents cut into windows, nothing lost and nothing learnt twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.data import _records
from jaxalign.data._answers import answers_example
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike, as_encoder
from jaxalign.data._example import Example
from jaxalign.data._records import Record
from jaxalign.data._sources import OnBadRow, counters_of, place_of
from jaxalign.errors import InputError

__all__ = ["text_windows"]


def text_windows(
    records: Sequence[Record],
    tokenizer: TokenizerLike | Encoder,
    *,
    length: int,
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Example], Counters]:
    """Documents (``text``) as windows of at most ``length`` tokens, every token but a document's first a target once.

    A document is its BOS, where the tokenizer puts one, its text and its EOS. A window after the first begins with the
    last token of the one before, which predicts its first target. To be packed into rows of ``length``.

    Raises:
      InputError: a bad row (file, row and field), unless ``on_bad_row`` is "skip"; or nothing is left.
    """
    if length < 2:
        raise InputError(f"windows of {length} tokens: there must be room for at least 2")
    encoder = as_encoder(tokenizer)
    counters = counters_of(records)
    examples: list[Example] = []
    for index, record in enumerate(records):
        place = place_of(records, index)
        try:
            text = _records.text(record, "text", place)
        except InputError:
            if on_bad_row == "error":
                raise
            counters.skipped["no usable text"] += 1
            continue
        ids = np.asarray(encoder.close(encoder.first(text), finished=True), np.int32)
        for start in range(0, len(ids) - 1, length - 1):
            window = ids[start : start + length]
            examples.append(answers_example((), [window], record_id=index, branched=False))
    counters.examples = len(examples)
    if not examples:
        raise InputError(f"no text to learn from ({counters.summary()})")
    return examples, counters
