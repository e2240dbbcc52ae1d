"""Records to examples: the only place where it is decided which token is supervised and what predicts it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from jaxalign.data import _records
from jaxalign.data._answers import answers_example
from jaxalign.data._chat import Segment, conversation_segments, render_prompt
from jaxalign.data._counters import Counters
from jaxalign.data._encoder import Encoder, TokenizerLike, as_encoder
from jaxalign.data._example import Example
from jaxalign.data._records import Content, Kind, Record, RecordDropped, record_kind
from jaxalign.data._sources import OnBadRow, Records, counters_of, place_of
from jaxalign.data._truncation import Truncation
from jaxalign.errors import InputError

AnswerField = Literal["completion", "chosen", "rejected"]
ExampleKind = Literal["text", "messages", "completion", "chosen", "rejected", "preference", "ranked", "unpaired"]

__all__ = [
    "AnswerField",
    "ExampleKind",
    "build_examples",
    "completion_example",
    "preference_example",
    "prompt_tokens",
    "ranked_example",
    "text_example",
    "unpaired_example",
]

_NO_LIMIT = Truncation()


@dataclasses.dataclass(frozen=True)
class _Context:
    """What every builder is given besides the record."""

    encoder: Encoder
    truncation: Truncation
    record_id: int
    place: str
    counters: Counters


def _context(
    tokenizer: TokenizerLike | Encoder,
    truncation: Truncation,
    record_id: int,
    place: str | None,
    counters: Counters | None,
) -> _Context:
    place = f"record {record_id}" if place is None else place
    return _Context(as_encoder(tokenizer), truncation, record_id, place, Counters() if counters is None else counters)


def _prompt(context: _Context, prompt: Content) -> list[int]:
    """Ids of a whole prompt; strings stay plain, messages go through the chat template."""
    if isinstance(prompt, str):
        return context.encoder.first(prompt)
    return context.encoder.first(render_prompt(context.encoder, prompt, context.place))


def _answer(context: _Context, prompt: Content, answer: Content, finished: bool, field: str) -> list[Segment]:
    """Segments of an answer, EOS included if it is finished."""
    encoder = context.encoder
    if isinstance(prompt, str):
        if not isinstance(answer, str):
            raise InputError(f"{context.place}: field {field!r} is a list of messages, but 'prompt' is a string")
        ids = encoder.following(answer) if prompt else encoder.raw(answer)
        if not prompt and ids[:1] == [encoder.start]:  # it stands in the prompt's place already
            ids = ids[1:]
        return [Segment(encoder.close(ids, finished=finished), True)]
    messages = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    return conversation_segments(
        encoder, [*prompt, *messages], start=len(prompt), finished=finished, place=context.place
    )


def _flatten(segments: Sequence[Segment]) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n] int32, supervised [n] bool) of segments in order."""
    ids = np.concatenate([np.asarray(segment.ids, np.int32) for segment in segments])
    supervised = np.concatenate([np.full(len(segment.ids), segment.supervised) for segment in segments])
    return ids, supervised


def _assemble(
    context: _Context,
    prompt: Sequence[int],
    answers: Sequence[Sequence[Segment]],
    fields: Sequence[str],
    *,
    branched: bool = True,
    **more: Any,
) -> Example:
    """``[prompt | answer 1 | ... | answer k]`` within the limits; every answer follows the prompt directly."""
    flat = [_flatten(segments) for segments in answers]
    policy, place, counters = context.truncation, context.place, context.counters
    if prompt:
        lengths = [len(ids) for ids, _ in flat]
        prompt = policy.prompt_ids(prompt, lengths, bos=context.encoder.bos, place=place, counters=counters)
    kept, marked = [], []
    for (ids, supervised), field in zip(flat, fields, strict=True):
        length = policy.answer_length(len(ids), len(prompt), place=place, field=field, counters=counters)
        if not (supervised[:length] if prompt else supervised[1:length]).any():
            raise InputError(f"{place}: field {field!r}: no supervised token is left (of {len(ids)})")
        kept.append(ids[:length])
        marked.append(supervised[:length])
    return answers_example(prompt, kept, record_id=context.record_id, supervised=marked, branched=branched, **more)


def text_example(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> Example:
    """A ``text`` (every token supervised) or ``messages`` (the assistant's turns supervised) record, one sequence.

    A finished text (``finished`` absent or true) ends with a supervised EOS; each assistant turn with the template's
    end-of-turn token. The first token of all has nothing to predict it and is not supervised. Raises ``InputError``.
    """
    context = _context(tokenizer, truncation, record_id, place, counters)
    finished = _records.flag(record, "finished", context.place, True)
    if record.get("messages") is not None:
        messages = _records.conversation(record, "messages", context.place)
        segments = conversation_segments(context.encoder, messages, start=0, finished=finished, place=context.place)
        return _assemble(context, [], [segments], ["messages"], branched=False)
    text = _records.text(record, "text", context.place)
    ids = context.encoder.close(context.encoder.first(text), finished=finished)
    return _assemble(context, [], [[Segment(ids, True)]], ["text"], branched=False)


def _prompt_and_answer(record: Record, field: AnswerField, place: str) -> tuple[Content, Content, bool]:
    if field == "completion":
        prompt = _records.content(_records.get(record, "prompt", place), "prompt", place)
        answer = _records.answer(_records.get(record, field, place), field, place)
        return prompt, answer, _records.flag(record, "finished", place, True)
    prompt, chosen, rejected = _records.preference(record, place)
    return prompt, chosen if field == "chosen" else rejected, _records.flag(record, f"{field}_finished", place, True)


def completion_example(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    answer: AnswerField = "completion",
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> Example:
    """``[prompt | completion]``, one sequence, the completion supervised with its EOS (none if ``finished`` is false).

    ``answer="chosen"`` or ``"rejected"`` takes that answer of a preference record (Preferred-FT). An empty prompt is
    the tokenizer's BOS token; where it has none, the first completion token is not supervised. Raises ``InputError``.
    """
    context = _context(tokenizer, truncation, record_id, place, counters)
    prompt, text, finished = _prompt_and_answer(record, answer, context.place)
    return _assemble(context, _prompt(context, prompt), [_answer(context, prompt, text, finished, answer)], [answer])


def preference_example(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> Example:
    """``[prompt | chosen | rejected]``: two sequences that share their prompt, one pair (0, 1).

    Positions restart after the prompt, neither answer sees the other, and the first target of each has the last prompt
    token as its source. Without ``prompt`` it is what both answers begin with. ``margin`` becomes the pair extra
    ``margin`` (float32); ``chosen_finished`` / ``rejected_finished`` false leaves out that EOS. An empty prompt is the
    tokenizer's BOS token; where it has none, the first token of either answer is not supervised. Raises ``InputError``.
    """
    context = _context(tokenizer, truncation, record_id, place, counters)
    prompt, chosen, rejected = _records.preference(record, context.place)
    fields = ("chosen", "rejected")
    answers = [
        _answer(context, prompt, text, _records.flag(record, f"{field}_finished", context.place, True), field)
        for field, text in zip(fields, (chosen, rejected), strict=True)
    ]
    extras = {}
    if record.get("margin") is not None:
        extras["margin"] = np.array([_records.number(record["margin"], "margin", context.place)], np.float32)
    return _assemble(
        context,
        _prompt(context, prompt),
        answers,
        fields,
        pairs=np.array([[0, 1]], np.int32),
        pair_extras=extras,
    )


def ranked_example(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> Example:
    """``[prompt | y1 | ... | yk]`` of ``responses`` + ``ratings``: k sequences, each computed once.

    Pairs are all (i, j) with rating i > rating j, in order; ``finished`` may be a list of booleans. Raises
    ``InputError`` for a bad field and where all ratings are equal (``build_examples`` skips and counts such a record).
    """
    context = _context(tokenizer, truncation, record_id, place, counters)
    prompt, responses, ratings, finished = _records.ranked(record, context.place)
    pairs = [(i, j) for i in range(len(ratings)) for j in range(len(ratings)) if ratings[i] > ratings[j]]
    if not pairs:
        raise RecordDropped(f"{context.place}: field 'ratings': all are equal, there is no pair", "all ratings equal")
    answers = [
        _answer(context, prompt, text, whole, "responses") for text, whole in zip(responses, finished, strict=True)
    ]
    fields = ["responses"] * len(answers)
    return _assemble(context, _prompt(context, prompt), answers, fields, pairs=np.array(pairs, np.int32))


def unpaired_example(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> Example:
    """``[prompt | completion]`` with the sequence extra ``label`` (bool, True = desirable). Raises ``InputError``."""
    context = _context(tokenizer, truncation, record_id, place, counters)
    label = np.array([_records.flag(record, "label", context.place)])
    example = completion_example(
        record,
        context.encoder,
        truncation=truncation,
        record_id=record_id,
        place=context.place,
        counters=context.counters,
    )
    return example.replace(sequence_extras={"label": label})


def prompt_tokens(
    record: Record,
    tokenizer: TokenizerLike | Encoder,
    *,
    truncation: Truncation = _NO_LIMIT,
    record_id: int = 0,
    place: str | None = None,
    counters: Counters | None = None,
) -> list[int]:
    """Ids of a record's prompt as training has them, to sample from: BOS, chat template and limits included.

    The prompt may be explicit or that of a preference pair. Raises ``InputError``.
    """
    context = _context(tokenizer, truncation, record_id, place, counters)
    ids = _prompt(context, _records.prompt(record, context.place))
    if not ids:
        raise InputError(f"{context.place}: field 'prompt' is empty and the tokenizer has no BOS to start from")
    return truncation.prompt_ids(ids, (), bos=context.encoder.bos, place=context.place, counters=context.counters)


_BUILDERS: Mapping[str, Callable[..., Example]] = {
    "text": text_example,
    "messages": text_example,
    "completion": completion_example,
    "preference": preference_example,
    "ranked": ranked_example,
    "unpaired": unpaired_example,
}


def build_examples(
    records: Sequence[Record],
    tokenizer: TokenizerLike | Encoder,
    *,
    kind: ExampleKind | None = None,
    truncation: Truncation = _NO_LIMIT,
    on_bad_row: OnBadRow = "error",
) -> tuple[list[Example], Counters]:
    """All records to examples, and what happened to them.

    ``kind=None`` goes by each record's fields; a given kind makes its fields required ("chosen" / "rejected" = that
    answer of a preference record, as a completion). ``record_id`` is the index in ``records``. Records dropped by a
    truncation policy or for ties are counted; bad ones are errors, or with ``on_bad_row="skip"`` counted too.
    Raises ``InputError`` naming file, row and field; also when nothing is left.
    """
    if kind is not None and kind not in get_args(ExampleKind):
        raise InputError(f"kind of record is {kind!r}, must be one of {', '.join(get_args(ExampleKind))}")
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}, must be 'error' or 'skip'")
    encoder = as_encoder(tokenizer)
    counters = counters_of(records)
    examples = []
    for index, record in enumerate(records):
        place = place_of(records, index)
        try:
            examples.append(_build(record, kind, encoder, truncation, index, place, counters))
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += 1
        except InputError as error:
            if on_bad_row == "error":
                raise
            counters.skipped[_reason(error, place)] += 1
    counters.examples = len(examples)
    if not examples:
        raise InputError(
            f"{records.place(0) if isinstance(records, Records) else 'records'}: nothing to train on "
            f"({counters.summary()})"
        )
    return examples, counters


def _reason(error: InputError, place: str) -> str:
    """What was wrong, without what differs from row to row."""
    return re.sub(r"\d+", "N", str(error).removeprefix(f"{place}: ").split(", got ", 1)[0])


def _build(
    record: Record,
    kind: ExampleKind | None,
    encoder: Encoder,
    truncation: Truncation,
    index: int,
    place: str,
    counters: Counters,
) -> Example:
    """One record, its truncations counted only if it is kept."""
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: expected an object, got {type(record).__name__}")
    own = Counters()
    options: dict[str, Any] = {"truncation": truncation, "record_id": index, "place": place, "counters": own}
    found: Kind | ExampleKind = record_kind(record, place) if kind is None else kind
    if found == "prompt":
        raise InputError(
            f"{place}: missing field 'completion' (or 'chosen' and 'rejected'): a prompt alone trains nothing"
        )
    if kind in ("chosen", "rejected"):
        example = completion_example(record, encoder, answer=kind, **options)
    else:
        if kind in ("text", "messages"):  # text_example goes by the fields: show it only the one asked for
            record = {kind: _records.get(record, kind, place), "finished": record.get("finished")}
        example = _BUILDERS[found](record, encoder, **options)
    counters.truncated.update(own.truncated)
    return example
