"""Published data sets by hub id, or by their columns: what recipes train on, and what chains of hindsight are made of.

Each row is known by its columns, so a local copy or a mirror is read as the hub id is, and a file may mix them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxalign.data import _records
from jaxalign.data._counters import Counters
from jaxalign.data._hub import parse_source
from jaxalign.data._records import Record, RecordDropped
from jaxalign.data._schemas import AXES, Posts, Schema, as_rated, as_trained, schema_of
from jaxalign.data._sources import OnBadRow, Records, load_records
from jaxalign.errors import InputError

__all__ = ["COLUMNS", "PUBLISHED", "feedback_records", "load_dataset", "load_feedback", "training_records"]

PUBLISHED: Mapping[str, tuple[Schema, ...]] = {
    "stanfordnlp/imdb": ("reviews",),
    "CarperAI/openai_summarize_tldr": ("tldr",),
    "openai/summarize_from_feedback": ("comparisons", "axis"),
    "Anthropic/hh-rlhf": ("dialogue",),
    "openai/webgpt_comparisons": ("webgpt",),
}
"""Hub id -> the schemas of its configurations."""

COLUMNS: Mapping[Schema, str] = {
    "reviews": "text and label (a number)",
    "tldr": "prompt (it ends with TL;DR:) and label (a text)",
    "comparisons": "info, summaries and choice",
    "axis": "info and summary",
    "dialogue": "chosen and rejected (both begin with Human:)",
    "webgpt": "question, answer_0, answer_1, score_0 and score_1",
}
"""By what a row is known, in words."""

_Finish = Callable[[Record, Schema, str], Record]


def feedback_records(records: Records, *, on_bad_row: OnBadRow = "error", axis: str = "overall") -> Records:
    """Rows of the published data sets as rated records: ``prompt``, ``responses``, ``ratings``, ``kind``.

    Each row is known by its columns, so files may be mixed:

    - ``openai/webgpt_comparisons``: two answers with their scores, kind "answer"; ties and empty answers are left out;
    - ``openai/summarize_from_feedback``, "comparisons": two summaries rated 1 (chosen) and 0, kind "summary";
    - the same, "axis": the rows of a post become one record at the place of the first of them; a summary's rating on
      ``axis`` is the mean of its raters'. Rows without that rating, posts with one rated summary and ties are left out;
    - ``Anthropic/hh-rlhf``: the row (``chosen``, ``rejected``) with kind "dialogue";
    - ``CarperAI/openai_summarize_tldr``: ``prompt`` and ``completion``, kind "summary": nobody rated it;
    - any other row: untouched.

    What is left out is counted by reason, in rows (all of a post's). Raises ``InputError`` naming file, row and field
    of a malformed row, which ``on_bad_row="skip"`` counts and leaves out too; for an unknown axis; and when nothing is
    left.
    """
    return _adapted(records, on_bad_row, axis, lambda record, schema, place: record)


def training_records(
    records: Records, *, on_bad_row: OnBadRow = "error", axis: str = "overall", hub_id: str | None = None
) -> Records:
    """Rows of the published data sets as what recipes train on: text that goes on from the prompt to the answer.

    As ``feedback_records``, but for

    - summaries: the prompt is "SUBREDDIT: r/...\\nTITLE: ...\\nPOST: ...\\nTL;DR:" (what there is of it), of
      comparisons as of ``CarperAI/openai_summarize_tldr``, and a summary begins with one space;
    - questions: "Question: ...\\n\\nAnswer:", then the same;
    - two rated answers: ``chosen`` and ``rejected``;
    - dialogues: the prompt ends with the last "\\n\\nAssistant:" of either string. A pair that parts before it is an
      error, which ``on_bad_row="skip"`` counts; one with an empty answer is left out and counted.

    Raises ``InputError`` as ``feedback_records`` does; for a row of columns that nobody knows; and with a ``hub_id``
    of the table ``PUBLISHED`` for a row of another schema than it has there.
    """
    return _adapted(records, on_bad_row, axis, _trained, PUBLISHED.get(hub_id or "", ()))


def _trained(record: Record, schema: Schema, place: str) -> Record:
    trained = as_trained(record, schema, place)
    try:
        _records.record_kind(trained, place)
    except InputError as error:
        raise InputError(f"{error}; or the columns of a published data set (docs/datasets.md)") from None
    return trained


def _adapted(
    records: Records, on_bad_row: str, axis: str, finish: _Finish, expected: tuple[Schema, ...] = ()
) -> Records:
    """All rows, each through ``finish`` last; with ``expected`` no row may be of another schema."""
    _check(on_bad_row, axis)
    counters = Counters(rows_read=records.counters.rows_read, skipped=records.counters.skipped.copy())
    posts = Posts(axis)
    kept: dict[int, Record] = {}
    for index, record in enumerate(records):
        place, schema = records.place(index), schema_of(record)
        try:
            if expected and schema not in expected:
                raise InputError(
                    f"{place}: expected {' or '.join(COLUMNS[one] for one in expected)}, as this data set has on the "
                    f"hub; the row has: {', '.join(map(str, record))}"
                )
            if schema == "axis":
                posts.add(record, index, place)
            else:
                kept[index] = finish(as_rated(record, schema, place), schema, place)
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += 1
        except InputError as error:
            if on_bad_row == "error":
                raise
            counters.skipped[_reason(error, place)] += 1
    for post in posts:
        place = records.place(post.first)
        try:
            kept[post.first] = finish(post.record(place), "axis", place)
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += post.rows
    if not kept:
        raise InputError(f"{records.place(0) if len(records) else 'records'}: no record is left ({counters.summary()})")
    order = sorted(kept)
    return Records([kept[index] for index in order], [records.place(index) for index in order], counters)


def _reason(error: InputError, place: str) -> str:
    """What was wrong, without what differs from row to row."""
    return re.sub(r"\d+", "N", str(error).removeprefix(f"{place}: ").split(", got ", 1)[0])


def _check(on_bad_row: str, axis: str) -> None:
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}, must be 'error' or 'skip'")
    if axis not in AXES:
        raise InputError(f"axis is {axis!r}, must be one of {', '.join(AXES)}")


def load_dataset(
    source: str | Path,
    split: str = "train",
    *,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
    axis: str = "overall",
) -> Records:
    """``load_records``, then ``training_records``: what a recipe's ``--dataset`` names. ``limit`` counts rows of the
    source. Raises ``InputError``."""
    _check(on_bad_row, axis)
    name, _, _ = parse_source(str(source))
    records = load_records(source, split, limit=limit, on_bad_row=on_bad_row)
    hub_id = None if Path(name).exists() else name
    return training_records(records, on_bad_row=on_bad_row, axis=axis, hub_id=hub_id)


def load_feedback(
    source: str | Path,
    split: str = "train",
    *,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
    axis: str = "overall",
) -> Records:
    """``load_records``, then ``feedback_records``: rated records of a published data set or of a file of one's own.

    ``limit`` counts the rows of the source. "openai/summarize_from_feedback:axis" has no split "train" but "test" and
    "validation". Raises ``InputError``.
    """
    _check(on_bad_row, axis)
    records = load_records(source, split, limit=limit, on_bad_row=on_bad_row)
    return feedback_records(records, on_bad_row=on_bad_row, axis=axis)
