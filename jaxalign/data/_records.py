"""The record formats: which fields make which kind, and what each must hold. All errors name row and field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxalign.errors import InputError, nearest

Kind = Literal["text", "messages", "completion", "preference", "ranked", "unpaired", "prompt"]
Message = Mapping[str, Any]
Content = str | list[Message]
Record = Mapping[str, Any]

__all__ = ["Content", "Kind", "Message", "Record", "RecordDropped", "record_kind"]

# Names that mean something here: none of them is a misspelling of another.
FIELDS = frozenset({
    "text", "messages", "prompt", "completion", "chosen", "rejected", "label", "margin", "responses", "ratings",
    "finished", "chosen_finished", "rejected_finished",
})  # fmt: skip
HH_MARKER = "\n\nAssistant:"


class RecordDropped(InputError):
    """A record left out by a policy rather than for being wrong; ``reason`` names the policy for the counters."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def record_kind(record: Record, place: str = "record") -> Kind:
    """The kind of a record by the fields it has (a null field counts as missing).

    ``chosen``/``rejected`` -> "preference"; ``responses`` -> "ranked"; ``completion`` + ``label`` -> "unpaired";
    ``completion`` -> "completion"; ``messages``; ``text``; ``prompt`` alone. Raises ``InputError`` if there is none.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: expected an object, got {type(record).__name__}")
    has = {name for name, value in record.items() if value is not None}
    if has & {"chosen", "rejected"}:
        return "preference"
    if has & {"responses", "ratings"}:
        return "ranked"
    if "completion" in has:
        return "unpaired" if "label" in has else "completion"
    kinds: tuple[Kind, ...] = ("messages", "text", "prompt")
    for kind in kinds:
        if kind in has:
            return kind
    fields = ", ".join(sorted(map(str, record))) or "none"
    raise InputError(
        f"{place}: missing field: needs text, messages, prompt + completion, prompt + chosen + rejected, "
        f"or prompt + responses + ratings; it has: {fields}{_renamed(record)}"
    )


def get(record: Record, field: str, place: str) -> Any:
    """The field's value; a missing or null one is an error."""
    value = record.get(field)
    if value is None:
        raise InputError(f"{place}: missing field {field!r}{_nearest_field(record, field)}")
    return value


def _renamed(record: Record) -> str:
    """Which foreign fields look like ours, as the end of a message."""
    foreign = [str(name) for name in record if name not in FIELDS]
    found = {name: near for name in foreign if (near := nearest(name, sorted(FIELDS))) is not None}
    return "; did you mean " + ", ".join(f"{near!r} by {name!r}" for name, near in found.items()) + "?" if found else ""


def _nearest_field(record: Record, field: str) -> str:
    """The field of a foreign name that was probably meant by ``field``, as the end of a message."""
    near = nearest(field, (str(name) for name, value in record.items() if value is not None and name not in FIELDS))
    return "" if near is None else f"; {near!r} looks like it: it must be named {field!r}"


def _messages(value: Sequence[Any], field: str, place: str) -> list[Message]:
    if not value:
        raise InputError(f"{place}: field {field!r}: empty list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise InputError(
                f"{place}: field {field!r}: message {index + 1} is a {type(message).__name__}, not an object"
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = "missing" if message.get(key) is None else f"a {type(message[key]).__name__}"
                raise InputError(f"{place}: field {field!r}: {key!r} of message {index + 1} is {found}, not a string")
        _encodable(message["content"], field, place)
    # Columnar files give every message every key: null means absent.
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _encodable(value: str, field: str, place: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: field {field!r}: half of a surrogate pair, not valid Unicode text") from None


def content(value: Any, field: str, place: str) -> Content:
    """A string or a list of ``{role, content}``, checked."""
    if isinstance(value, str):
        _encodable(value, field, place)
        return value
    if isinstance(value, list | tuple):
        return _messages(value, field, place)
    raise InputError(f"{place}: field {field!r}: expected a string or a list of messages, got {type(value).__name__}")


def answer(value: Any, field: str, place: str) -> Content:
    """A completion: a string or messages that say something and end with the assistant."""
    checked = content(value, field, place)
    if isinstance(checked, str):
        if not checked.strip():
            raise InputError(f"{place}: field {field!r}: empty completion")
        return checked
    if checked[-1]["role"] != "assistant":
        raise InputError(f"{place}: field {field!r}: the last message is by {checked[-1]['role']!r}, not 'assistant'")
    for message in checked:
        if message["role"] == "assistant" and not message["content"].strip():
            raise InputError(f"{place}: field {field!r}: empty completion")
    return checked


def text(record: Record, field: str, place: str) -> str:
    """A string that says something."""
    value = get(record, field, place)
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r}: expected a string, got {type(value).__name__}")
    if not value.strip():
        raise InputError(f"{place}: field {field!r}: empty text")
    _encodable(value, field, place)
    return value


def conversation(record: Record, field: str, place: str) -> list[Message]:
    """A list of messages with something by the assistant in it."""
    value = get(record, field, place)
    if not isinstance(value, list | tuple):
        raise InputError(f"{place}: field {field!r}: expected a list of messages, got {type(value).__name__}")
    messages = _messages(value, field, place)
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise InputError(f"{place}: field {field!r}: no message by 'assistant', nothing to learn from")
    if any(not turn["content"].strip() for turn in turns):
        raise InputError(f"{place}: field {field!r}: empty completion")
    return messages


def flag(record: Record, field: str, place: str, default: bool | None = None) -> bool:
    """A boolean (0 and 1 are taken too)."""
    value = record.get(field)
    if value is None and default is not None:
        return default
    value = get(record, field, place)
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise InputError(f"{place}: field {field!r}: expected true or false, got {value!r:.40}")


def number(value: Any, field: str, place: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{place}: field {field!r}: expected a finite number, got {value!r:.40}")
    return float(value)


def split_implicit_prompt(chosen: Content, rejected: Content, place: str) -> tuple[Content, Content, Content]:
    """(prompt, chosen, rejected) of a pair that repeats its prompt in both answers.

    Strings: the common beginning up to and with its last "\\n\\nAssistant:" (the Anthropic-HH format) or else, so that
    no word is cut, before its last white space. Messages: the leading messages they share, leaving each an answer.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = 0
        for a, b in zip(chosen, rejected, strict=False):
            if a != b:
                break
            shared += 1
        marker = chosen.rfind(HH_MARKER, 0, shared)
        if marker >= 0:
            cut = marker + len(HH_MARKER)
        else:
            cut = max((i for i in range(shared) if chosen[i].isspace()), default=0)
            while cut > 0 and chosen[cut - 1].isspace():
                cut -= 1
        return chosen[:cut], chosen[cut:], rejected[cut:]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise InputError(f"{place}: fields 'chosen' and 'rejected': one is a string, the other a list of messages")
    shared = 0
    for first, second in zip(chosen[:-1], rejected[:-1], strict=False):
        if first != second:
            break
        shared += 1
    if shared == 0:
        raise InputError(f"{place}: missing field 'prompt', and 'chosen' and 'rejected' share no first message")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def preference(record: Record, place: str) -> tuple[Content, Content, Content]:
    """(prompt, chosen, rejected), the prompt explicit or implicit."""
    chosen_value, rejected_value = get(record, "chosen", place), get(record, "rejected", place)
    if record.get("prompt") is not None:
        prompt = content(record["prompt"], "prompt", place)
        return prompt, answer(chosen_value, "chosen", place), answer(rejected_value, "rejected", place)
    prompt, chosen, rejected = split_implicit_prompt(
        content(chosen_value, "chosen", place), content(rejected_value, "rejected", place), place
    )
    return prompt, answer(chosen, "chosen", place), answer(rejected, "rejected", place)


def prompt(record: Record, place: str) -> Content:
    """The prompt of any record that has one, explicit or that of a preference pair."""
    if record.get("prompt") is None and record.get("chosen") is not None:
        return preference(record, place)[0]
    return content(get(record, "prompt", place), "prompt", place)


def ranked(record: Record, place: str) -> tuple[Content, list[Content], list[float], list[bool]]:
    """(prompt, responses, ratings, finished) of a rated record."""
    prompt = content(get(record, "prompt", place), "prompt", place)
    responses, ratings = get(record, "responses", place), get(record, "ratings", place)
    for field, value in (("responses", responses), ("ratings", ratings)):
        if not isinstance(value, list | tuple):
            raise InputError(f"{place}: field {field!r}: expected a list, got {type(value).__name__}")
    if len(responses) < 2:
        raise InputError(f"{place}: field 'responses': needs at least 2 answers, has {len(responses)}")
    if len(ratings) != len(responses):
        raise InputError(f"{place}: field 'ratings': {len(ratings)} ratings for {len(responses)} responses")
    finished = record.get("finished")
    if finished is None:
        finished = [True] * len(responses)
    listed = isinstance(finished, list | tuple) and len(finished) == len(responses)
    if not listed or not all(isinstance(value, bool) for value in finished):
        raise InputError(f"{place}: field 'finished': expected a list of {len(responses)} booleans")
    return (
        prompt,
        [answer(value, "responses", place) for value in responses],
        [number(value, "ratings", place) for value in ratings],
        list(finished),
    )
