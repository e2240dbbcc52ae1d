"""The schemas of published data sets: whose a row is, by its columns, and the record it becomes."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from jaxalign.data import _records
from jaxalign.data._records import Record, RecordDropped
from jaxalign.errors import InputError

__all__ = ["AXES", "Posts", "Schema", "as_rated", "as_trained", "schema_of"]

Schema = Literal["reviews", "tldr", "comparisons", "axis", "dialogue", "webgpt", "other"]

AXES = ("overall", "accuracy", "coverage", "coherence")
# What makes a row a record of ours already, whatever else it carries.
_OWN_FIELDS = frozenset({"text", "messages", "prompt", "completion", "chosen", "rejected", "responses", "ratings"})
_WEBGPT_FIELDS = frozenset({"answer_0", "answer_1", "score_0", "score_1"})
_HUMAN = "Human:"
_SUMMARY_CUE = "TL;DR:"


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
    lines = [f"SUBREDDIT: r/{subreddit.removeprefix('r/')}"] if subreddit else []
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
        """How many rows of the file it is."""
        return sum(map(len, self.marks.values()))

    def record(self, place: str) -> Record:
        """Its summaries, each with the mean of its marks."""
        responses, ratings = list(self.marks), [statistics.fmean(marks) for marks in self.marks.values()]
        if len(responses) < 2:
            raise RecordDropped(f"{place}: the post has one rated summary", "one rated summary")
        if len(set(ratings)) == 1:
            raise RecordDropped(f"{place}: all summaries of the post are rated the same", "tie")
        return {"prompt": self.prompt, "responses": responses, "ratings": ratings, "kind": "summary"}


class Posts:
    """The posts of the axis schema, whose rows become one record each."""

    def __init__(self, axis: str) -> None:
        self._axis = axis
        self._posts: dict[tuple[str, str], _Post] = {}

    def add(self, record: Record, index: int, place: str) -> None:
        """The mark of a row to those of its post."""
        info = _object(record, "info", place)
        prompt = _summary_prompt(info, place)
        name = _part(info, "id", f"{place}: field 'info'")
        summary, inside = _object(record, "summary", place), f"{place}: field 'summary'"
        # The raw files leave out the axes that nobody was asked for, the hub has them as null.
        mark = _object(summary, "axes", inside).get(self._axis)
        rating = None if mark is None else _records.number(mark, self._axis, f"{inside}: field 'axes'")
        text = _answer(summary, "text", inside)
        if rating is None:
            raise RecordDropped(f"{inside}: no rating on {self._axis}", f"no rating on {self._axis}")
        post = self._posts.setdefault(("id", name) if name else ("text", prompt), _Post(index, prompt))
        post.marks.setdefault(text, []).append(rating)

    def __iter__(self) -> Iterator[_Post]:
        return iter(self._posts.values())


def _asks_for_a_summary(prompt: Any) -> bool:
    return isinstance(prompt, str) and (prompt.rstrip().endswith(_SUMMARY_CUE) or prompt.startswith("SUBREDDIT:"))


def _begins_with_human(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(_HUMAN)


def _dialogue(record: Record, place: str) -> Record:
    """The row with its kind; what begins otherwise in one of its two strings is no dialogue of this schema."""
    texts = [_records.text(record, field, place) for field in ("chosen", "rejected")]
    if not all(map(_begins_with_human, texts)):
        return record
    return {**record, "kind": "dialogue"} if record.get("kind") is None else record


def _dialogue_pair(record: Record, place: str) -> Record:
    """The row divided behind the last "\\n\\nAssistant:" of either string, up to which they must be the same."""
    chosen, rejected = (_records.text(record, field, place) for field in ("chosen", "rejected"))
    cuts = [text.rfind(_records.HH_MARKER) + len(_records.HH_MARKER) for text in (chosen, rejected)]
    for field, cut in zip(("chosen", "rejected"), cuts, strict=True):
        if cut < len(_records.HH_MARKER):
            raise InputError(f"{place}: field {field!r}: no turn begins with {_records.HH_MARKER!r}")
    prompt = chosen[: cuts[0]]
    if rejected[: cuts[1]] != prompt:
        raise InputError(
            f"{place}: fields 'chosen' and 'rejected' do not share their prompt, all up to the last "
            f"{_records.HH_MARKER!r} of each"
        )
    answers = {"chosen": chosen[cuts[0] :], "rejected": rejected[cuts[1] :]}
    for field in answers:
        _answer(answers, field, place)
    return {"kind": "dialogue", **record, "prompt": prompt, **answers}


def _tldr(record: Record, place: str) -> Record:
    """A post, as the prompt has it, and its author's own summary."""
    prompt = _records.text(record, "prompt", place).rstrip()
    return {"prompt": prompt, "completion": _answer(record, "label", place), "kind": "summary"}


def schema_of(record: Record) -> Schema:
    """Whose row it is, by the fields it has (a null field counts as missing: columnar files give every row each)."""
    has = {name for name, value in record.items() if value is not None}
    own = has & _OWN_FIELDS
    if own == {"text"} and isinstance(record.get("label"), int):
        return "reviews"
    if own == {"prompt"} and isinstance(record.get("label"), str) and _asks_for_a_summary(record["prompt"]):
        return "tldr"
    if own:
        pair = own <= {"chosen", "rejected"}
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


def as_rated(record: Record, schema: Schema, place: str) -> Record:
    """The row with its answers and their ratings, as chains of hindsight take it (but for "axis": ``Posts``)."""
    match schema:
        case "webgpt":
            return _webgpt(record, place)
        case "comparisons":
            return _comparison(record, place)
        case "dialogue":
            return _dialogue(record, place)
        case "tldr":
            return _tldr(record, place)
        case _:
            return record


def as_trained(record: Record, schema: Schema, place: str) -> Record:
    """What ``as_rated`` or ``Posts`` made of a row, as a text that goes on from the prompt to the answer.

    A post is followed by "\\nTL;DR:", a question stands between "Question: " and "\\n\\nAnswer:"; answers begin with
    one space. Of two rated answers the better one is chosen.
    """
    if schema == "dialogue":
        return _dialogue_pair(record, place)
    if schema in ("reviews", "other"):
        return record
    prompt = str(record["prompt"])
    if schema == "webgpt":
        prompt = f"Question: {prompt.strip()}\n\nAnswer:"
    elif not prompt.endswith(_SUMMARY_CUE):
        prompt = f"{prompt.rstrip()}\n{_SUMMARY_CUE}"
    asked: dict[str, Any] = {"prompt": prompt, "kind": record["kind"]}
    if "completion" in record:
        return asked | {"completion": f" {record['completion'].strip()}"}
    answers = [f" {answer.strip()}" for answer in record["responses"]]
    ratings = record["ratings"]
    if len(answers) > 2:
        return asked | {"responses": answers, "ratings": ratings}
    best = int(ratings[1] > ratings[0])
    return asked | {"chosen": answers[best], "rejected": answers[1 - best]}
