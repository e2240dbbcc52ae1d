"""Published data sets of human feedback, by their hub schemas, as one form of rated records."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import _records
from jaxalign.data._counters import Counters
from jaxalign.data._records import Record, RecordDropped
from jaxalign.data._sources import OnBadRow, Records, load_records
from jaxalign.errors import InputError

__all__ = ["feedback_records", "load_feedback"]

_Schema = Literal["webgpt", "comparisons", "axis", "dialogue", "other"]

AXES = ("overall", "accuracy", "coverage", "coherence")
# What makes a row a record of ours already, whatever else it carries.
_OWN_FIELDS = frozenset({"text", "messages", "prompt", "completion", "chosen", "rejected", "responses", "ratings"})
_WEBGPT_FIELDS = frozenset({"answer_0", "answer_1", "score_0", "score_1"})
_HUMAN = "Human:"
_SPLIT = re.compile(r"(.+)@([\w.-]+)")
_HUB_CONFIG = re.compile(r"([\w.-]+(?:/[\w.-]+)?):([^:/\\]+)")


@dataclasses.dataclass
class _Post:
    """A post of the axis schema: every rater's mark of every summary of it."""

    first: int
    """The index of its first row."""
    prompt: str
    marks: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    """By summary text, in order of first appearance."""

    @property
    def rows(self) -> int:
        return sum(map(len, self.marks.values()))


def _object(record: Record, field: str, place: str) -> Mapping[str, Any]:
    value = _records.get(record, field, place)
    if not isinstance(value, Mapping):
        raise InputError(f"{place}: field {field!r}: expected an object, got {type(value).__name__}")
    return value


def _part(record: Record, field: str, place: str) -> str:
    """A string, empty where it is null or says nothing."""
    value = record.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return _records.text(record, field, place)


def _answer(record: Record, field: str, place: str) -> str:
    """A string that says something; an empty one is no mistake in the row, but nothing to learn from."""
    _records.get(record, field, place)
    text = _part(record, field, place)
    if not text:
        raise RecordDropped(f"{place}: field {field!r}: empty answer", "empty answer")
    return text


def _webgpt(record: Record, place: str) -> Record:
    question = _records.text(_object(record, "question", place), "full_text", f"{place}: field 'question'")
    ratings = [_records.number(_records.get(record, field, place), field, place) for field in ("score_0", "score_1")]
    responses = [_answer(record, field, place) for field in ("answer_0", "answer_1")]
    if ratings[0] == ratings[1]:
        raise RecordDropped(f"{place}: fields 'score_0' and 'score_1': equal", "tie")
    return {"prompt": question, "responses": responses, "ratings": ratings, "kind": "answer"}


def _summary_prompt(info: Record, place: str) -> str:
    """What there is of a post or an article, in the layout of the TL;DR prompts."""
    place = f"{place}: field 'info'"
    subreddit, title, post, article = (_part(info, field, place) for field in ("subreddit", "title", "post", "article"))
    if not post and not article:
        raise InputError(f"{place}: neither 'post' nor 'article' says anything")
    lines = [f"SUBREDDIT: r/{subreddit}"] if subreddit else []
    if title:
        lines.append(f"TITLE: {title}")
    lines.append(f"POST: {post}" if post else f"ARTICLE: {article}")
    return "\n".join(lines)


def _comparison(record: Record, place: str) -> Record:
    prompt = _summary_prompt(_object(record, "info", place), place)
    summaries = _records.get(record, "summaries", place)
    if not isinstance(summaries, list | tuple):
        raise InputError(f"{place}: field 'summaries': expected a list, got {type(summaries).__name__}")
    if len(summaries) != 2:
        raise InputError(f"{place}: field 'summaries': needs 2 summaries, has {len(summaries)}")
    choice = _records.get(record, "choice", place)
    if isinstance(choice, bool) or choice not in (0, 1):
        raise InputError(f"{place}: field 'choice': expected 0 or 1, got {choice!r:.40}")
    responses = []
    for number, summary in enumerate(summaries, start=1):
        inside = f"{place}: field 'summaries': summary {number}"
        if not isinstance(summary, Mapping):
            raise InputError(f"{inside} is a {type(summary).__name__}, not an object")
        responses.append(_answer(summary, "text", inside))
    ratings = [float(index == choice) for index in range(2)]
    return {"prompt": prompt, "responses": responses, "ratings": ratings, "kind": "summary"}


def _add_mark(posts: dict[tuple[str, str], _Post], record: Record, index: int, axis: str, place: str) -> None:
    """The mark of a row of the axis schema to those of its post."""
    info = _object(record, "info", place)
    prompt = _summary_prompt(info, place)
    name = _part(info, "id", f"{place}: field 'info'")
    summary, inside = _object(record, "summary", place), f"{place}: field 'summary'"
    # The raw files leave out the axes that nobody was asked for, the hub has them as null.
    mark = _object(summary, "axes", inside).get(axis)
    rating = None if mark is None else _records.number(mark, axis, f"{inside}: field 'axes'")
    text = _answer(summary, "text", inside)
    if rating is None:
        raise RecordDropped(f"{inside}: no rating on {axis}", f"no rating on {axis}")
    post = posts.setdefault(("id", name) if name else ("text", prompt), _Post(index, prompt))
    post.marks.setdefault(text, []).append(rating)


def _rated_post(post: _Post, place: str) -> Record:
    responses, ratings = list(post.marks), [statistics.fmean(marks) for marks in post.marks.values()]
    if len(responses) < 2:
        raise RecordDropped(f"{place}: the post has one rated summary", "one rated summary")
    if len(set(ratings)) == 1:
        raise RecordDropped(f"{place}: all summaries of the post are rated the same", "tie")
    return {"prompt": post.prompt, "responses": responses, "ratings": ratings, "kind": "summary"}


def _begins_with_human(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(_HUMAN)


def _dialogue(record: Record, place: str) -> Record:
    """The row with its kind; what begins otherwise in one of its two strings is no dialogue of this schema."""
    texts = [_records.text(record, field, place) for field in ("chosen", "rejected")]
    if not all(map(_begins_with_human, texts)):
        return record
    return {**record, "kind": "dialogue"} if record.get("kind") is None else record


def _schema(record: Record) -> _Schema:
    """Whose row it is, by the fields it has (a null field counts as missing: columnar files give every row each)."""
    has = {name for name, value in record.items() if value is not None}
    if has & _OWN_FIELDS:
        pair = has & _OWN_FIELDS <= {"chosen", "rejected"}
        human = any(_begins_with_human(record.get(field)) for field in ("chosen", "rejected"))
        return "dialogue" if pair and human else "other"
    if has & _WEBGPT_FIELDS:
        return "webgpt"
    if "summaries" in has or has >= {"info", "choice"}:
        return "comparisons"
    # 'summary' alone is a name that many data sets have for a string.
    if "summary" in has and ("info" in has or isinstance(record["summary"], Mapping)):
        return "axis"
    return "other"


def _reason(error: InputError, place: str) -> str:
    """What was wrong, without what differs from row to row."""
    return re.sub(r"\d+", "N", str(error).removeprefix(f"{place}: ").split(", got ", 1)[0])


def _check(on_bad_row: str, axis: str) -> None:
    if on_bad_row not in ("error", "skip"):
        raise InputError(f"on_bad_row is {on_bad_row!r}, must be 'error' or 'skip'")
    if axis not in AXES:
        raise InputError(f"axis is {axis!r}, must be one of {', '.join(AXES)}")


def feedback_records(records: Records, *, on_bad_row: OnBadRow = "error", axis: str = "overall") -> Records:
    """Rows of the published data sets as rated records: ``prompt``, ``responses``, ``ratings``, ``kind``.

    Each row is known by its fields, so files may be mixed:

    - ``openai/webgpt_comparisons``: two answers with their scores, kind "answer"; ties and empty answers are left out;
    - ``openai/summarize_from_feedback``, "comparisons": two summaries rated 1 (chosen) and 0, kind "summary";
    - the same, "axis": the rows of a post become one record at the place of the first of them; a summary's rating on
      ``axis`` is the mean of its raters'. Rows without that rating, posts with one rated summary and ties are left out;
    - ``Anthropic/hh-rlhf``: the row (``chosen``, ``rejected``) with kind "dialogue";
    - any other row: untouched.

    What is left out is counted by reason, in rows (all of a post's). Raises ``InputError`` naming file, row and field
    of a malformed row, which ``on_bad_row="skip"`` counts and leaves out too; for an unknown axis; and when nothing is
    left.
    """
    _check(on_bad_row, axis)
    counters = Counters(rows_read=records.counters.rows_read, skipped=records.counters.skipped.copy())
    posts: dict[tuple[str, str], _Post] = {}
    kept: dict[int, Record] = {}
    for index, record in enumerate(records):
        place = records.place(index)
        try:
            match _schema(record):
                case "webgpt":
                    kept[index] = _webgpt(record, place)
                case "comparisons":
                    kept[index] = _comparison(record, place)
                case "axis":
                    _add_mark(posts, record, index, axis, place)
                case "dialogue":
                    kept[index] = _dialogue(record, place)
                case "other":
                    kept[index] = record
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += 1
        except InputError as error:
            if on_bad_row == "error":
                raise
            counters.skipped[_reason(error, place)] += 1
    for post in posts.values():
        try:
            kept[post.first] = _rated_post(post, records.place(post.first))
        except RecordDropped as dropped:
            counters.skipped[dropped.reason] += post.rows
    if not kept:
        raise InputError(
            f"{records.place(0) if len(records) else 'records'}: no feedback is left ({counters.summary()})"
        )
    order = sorted(kept)
    return Records([kept[index] for index in order], [records.place(index) for index in order], counters)


def _hub_export(name: str, split: str, config: str | None, limit: int | None) -> Records:
    """Rows of the Parquet files that the hub itself keeps of a data set published as a Python script."""
    import datasets

    files = f"hf://datasets/{name}@refs%2Fconvert%2Fparquet/{config or 'default'}/{split}/*.parquet"
    try:
        dataset = datasets.load_dataset("parquet", data_files={split: files}, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{name}: a script on the hub, and no Parquet export of configuration {config or 'default'!r}, "
            f"split {split!r}: {reason}"
        ) from None
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    rows = list(dataset)
    return Records(rows, [f"{name}: row {number}" for number in range(1, len(rows) + 1)], Counters(rows_read=len(rows)))


def load_feedback(
    source: str | Path,
    split: str = "train",
    *,
    limit: int | None = None,
    on_bad_row: OnBadRow = "error",
    axis: str = "overall",
) -> Records:
    """``load_records``, then ``feedback_records``: rated records of a published data set or of a file of one's own.

    ``source`` is what ``load_records`` takes, or "HUB_ID:CONFIG", such as "openai/summarize_from_feedback:comparisons"
    (a file of that name comes first); "@SPLIT" behind either names a split of its own. ``limit`` counts the rows of the
    source. The axis configuration of that data set has no split "train" but "test" and "validation". Raises
    ``InputError``.
    """
    _check(on_bad_row, axis)
    name, config = str(source), None
    if not Path(name).exists() and (own := _SPLIT.fullmatch(name)):
        name, split = own.groups()
    hub = _HUB_CONFIG.fullmatch(name)
    if hub and not Path(name).exists():
        name, config = hub.groups()
    try:
        records = load_records(name, split, config=config, limit=limit, on_bad_row=on_bad_row)
    except RuntimeError as error:
        # Two of these data sets are scripts on the hub, which datasets runs no more (since 4.0).
        if "scripts are no longer supported" not in str(error):
            raise
        records = _hub_export(name, split, config, limit)
    return feedback_records(records, on_bad_row=on_bad_row, axis=axis)
