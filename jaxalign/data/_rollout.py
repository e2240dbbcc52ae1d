"""Prompts to sample from, and sampled responses laid out as a batch that is trained on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.data import _records
from jaxalign.data._batch import Batch
from jaxalign.data._builders import prompt_tokens
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike, as_encoder
from jaxalign.data._records import RecordDropped
from jaxalign.data._sources import OnBadRow, counters_of, place_of
from jaxalign.data._truncation import Truncation
from jaxalign.errors import InputError

__all__ = ["Prompt", "build_prompts", "response_batch"]

_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt to sample responses to."""

    tokens: Sequence[int]
    """Its ids as a model is given them: BOS, chat template and limits included."""
    content: Any
    """What a text reward is called with: the record's string, or its list of messages."""
    place: str = ""
    """Where it came from, for messages."""


def build_prompts(
    records: Sequence[Any],
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation | None = None,
    on_bad_row: OnBadRow = "error",
    text_prefix: tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[list[Prompt], Counters]:
    """The prompts of records, explicit or those of preference pairs; answers, where there are any, are not read.

    ``text_prefix=(a, b)``: a ``text`` gives the prompt of its first n tokens, BOS not counted, with n drawn from a to
    b, both included, as a pure function of ``seed`` and the row's index. A prompt is a text, tokenised as any other:
    where that cuts this beginning otherwise than the whole text, or a token ends within a character, it has about n.

    Raises:
      InputError: a bad row (file, row and field), unless ``on_bad_row`` is "skip"; no prompt is left; or no record is
        one that ``text_prefix`` is for.
    """
    encoder = as_encoder(tokenizer)
    truncation = Truncation() if truncation is None else truncation
    counters = counters_of(records)
    prompts = []
    texts = 0
    for index, record in enumerate(records):
        place = place_of(records, index)
        own = Counters()
        try:
            if record.get("text") is not None and record.get("prompt") is None:
                texts += 1
                record = {"prompt": _beginning(record, encoder, text_prefix, (seed, index), place)}
            content = _records.prompt(record, place)
            ids = prompt_tokens(
                {"prompt": content}, encoder, truncation=truncation, record_id=index, place=place, counters=own
            )
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += 1
            continue
        except InputError:
            if on_bad_row == "error":
                raise
            counters.skipped["no usable prompt"] += 1
            continue
        counters.truncated.update(own.truncated)
        prompts.append(Prompt(ids, content, place))
    counters.examples = len(prompts)
    if not prompts:
        raise InputError(f"no prompt to sample from ({counters.summary()})")
    if text_prefix is not None and not texts:
        raise InputError("--text-prefix: every record has a prompt of its own; it is for records of 'text' alone")
    return prompts, counters


def _beginning(record: Any, encoder: Encoder, limits: tuple[int, int] | None, seed: tuple[int, int], place: str) -> str:
    """The first few tokens of a text, as text."""
    text = _records.text(record, "text", place)
    if limits is None:
        raise InputError(f"{place}: missing field 'prompt'; of a 'text' jaxalign ppo --text-prefix makes one")
    count = int(np.random.default_rng(seed).integers(limits[0], limits[1], endpoint=True))
    # A token may end within a character; what is left of that is no text.
    return encoder.decode(encoder.raw(text)[:count]).rstrip("\ufffd")


def response_batch(
    prompts: Sequence[Sequence[int]],
    tokens: np.ndarray,
    mask: np.ndarray,
    *,
    prompt_width: int,
    record_ids: Sequence[int],
    pad_token: int = 0,
    pieces: int = 1,
    **extras: Any,
) -> Batch:
    """Rows ``[prompt | response]`` in the fixed shape ``[B, T]``, target t of a row being token t of its response.

    T is ``prompt_width`` + N, rounded up to a multiple of 8 and of ``pieces``. ``source_index[b, t]`` is the token
    before response token t, for every t < N, masked ones included: where a row has room, target N' of a response of N'
    tokens has the response's last token as its source, whose hidden state is read for what comes after the response.

    Args:
      prompts: B lists of ids, of at most ``prompt_width``.
      tokens, mask: ``[B, N]``, sampled responses, each a prefix of its row; their stop tokens included.
      prompt_width: the longest prompt of the run, so that all its batches have one shape.
      record_ids: B numbers by which errors name a row.
      pad_token: the id written into padding; it carries no meaning.
      pieces: into which a mesh splits rows.
      extras: arrays ``[B, ...]`` to carry.

    Raises:
      ValueError: arrays that do not fit together.
    """
    rows, width = np.shape(tokens)
    multiple = math.lcm(_MULTIPLE, pieces)
    length = -(-(prompt_width + width) // multiple) * multiple
    lengths = np.asarray([len(prompt) for prompt in prompts])
    if len(lengths) != rows or np.shape(mask) != (rows, width) or lengths.min() < 1 or lengths.max() > prompt_width:
        raise ValueError(
            f"{len(lengths)} prompts of up to {lengths.max()} tokens do not fit [{rows}, {width}] responses"
        )
    columns = np.arange(length)
    ends = lengths + np.asarray(mask).sum(1)
    laid = np.full((rows, length), pad_token, np.int32)
    for row, prompt in enumerate(prompts):
        laid[row, : lengths[row]] = prompt
        laid[row, lengths[row] : ends[row]] = tokens[row][: ends[row] - lengths[row]]
    used = columns < ends[:, None]
    return Batch(
        tokens=laid,
        positions=np.where(used, columns, 0).astype(np.int32),
        example=used.astype(np.int32),
        branch=np.zeros((rows, length), np.int32),
        source_index=(lengths[:, None] - 1 + np.arange(width)).astype(np.int32),
        targets=np.where(mask, tokens, 0).astype(np.int32),
        target_mask=np.asarray(mask, bool),
        target_sequence=np.zeros((rows, width), np.int32),
        pairs=np.zeros((rows, 0, 2), np.int32),
        pair_mask=np.zeros((rows, 0), bool),
        sequence_mask=np.ones((rows, 1), bool),
        record_ids=np.asarray(record_ids, np.int32).reshape(rows, 1),
        extras=extras,
        branched=False,
    )
