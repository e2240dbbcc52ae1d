"""A record as outputs with feedback: what was said, how it was rated, what stands before it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jaxalign.data import _records
from jaxalign.data._records import Content, Record
from jaxalign.data._templates import FeedbackKind
from jaxalign.errors import InputError

__all__ = ["Output", "RatedOutputs", "Turn", "rated_outputs"]

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side of a dialogue says."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Output:
    """An answer of a model, with what people (or a function) said of it."""

    turns: tuple[Turn, ...]
    """One turn by the assistant; of dialogues that part earlier, all that follows, the last by the assistant."""
    rating: float | None
    """Higher is better; None where nobody rated."""
    feedback: str | None = None
    """Feedback in words of its own, to stand before the output in a template's place."""
    finished: bool = True


@dataclasses.dataclass(frozen=True)
class RatedOutputs:
    """A prompt and the outputs to it."""

    kind: FeedbackKind
    prompt: str | tuple[Turn, ...]
    """A text, or the turns of a dialogue so far."""
    outputs: tuple[Output, ...]

    @property
    def rated(self) -> bool:
        """Whether the outputs have ratings."""
        return self.outputs[0].rating is not None


def rated_outputs(record: Record, place: str, *, kind: FeedbackKind = "answer") -> RatedOutputs:
    """Read a record of any form that carries feedback.

    - ``prompt`` + ``responses`` + ``ratings`` (k >= 2), or ``feedback`` (a text a response) beside or instead of them;
    - ``prompt`` + ``chosen`` + ``rejected``, also with the prompt inside both (Anthropic-HH);
    - ``prompt`` + ``completion`` + ``label`` (good or bad), or ``feedback`` (a text).

    ``kind`` of the record, where it has one, goes before the argument; a dialogue (messages, or text of turns that
    begin "Human:" and "Assistant:") is a "dialogue" unless the record says otherwise.

    Raises:
      InputError: naming place and field.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: expected an object, got {type(record).__name__}")
    found = _records.record_kind(record, place)
    if found == "preference":
        prompt, answers = _preference(record, place)
        ratings: list[float | None] = [1.0, 0.0]
        finished = [_records.flag(record, f"{field}_finished", place, True) for field in ("chosen", "rejected")]
    elif found == "ranked":
        prompt, answers, ratings, finished = _ranked(record, place)
    elif found in ("completion", "unpaired"):
        if found == "completion" and record.get("feedback") is None:
            raise InputError(
                f"{place}: missing field 'feedback' (or 'label'): a completion alone says nothing of itself"
            )
        prompt = _prompt(_records.get(record, "prompt", place), place)
        answers = [_answer(_records.get(record, "completion", place), "completion", place)]
        ratings = [float(_records.flag(record, "label", place)) if found == "unpaired" else None]
        finished = [_records.flag(record, "finished", place, True)]
    else:
        raise InputError(
            f"{place}: no feedback: it needs prompt + responses + ratings, prompt + chosen + rejected, or prompt + "
            "completion + label or feedback"
        )
    own: Any = record.get("kind")
    if own is None:
        own = kind if isinstance(prompt, str) else "dialogue"
    if own not in get_args(FeedbackKind):
        raise InputError(f"{place}: field 'kind': expected one of {', '.join(get_args(FeedbackKind))}, got {own!r:.40}")
    feedback = _feedback(record, len(answers), place)
    outputs = tuple(map(Output, answers, ratings, feedback, finished))
    return RatedOutputs(own, prompt, outputs)


def _ranked(record: Record, place: str) -> tuple[str | tuple[Turn, ...], list[Any], list[float | None], list[bool]]:
    if record.get("ratings") is None and record.get("feedback") is not None:
        given = _records.get(record, "responses", place)
        unknown = [0] * len(given) if isinstance(given, list | tuple) else []
        content, responses, _, finished = _records.ranked({**record, "ratings": unknown}, place)
        ratings: list[float | None] = [None] * len(responses)
    else:
        content, responses, known, finished = _records.ranked(record, place)
        ratings = list(known)
    return _prompt(content, place), [_answer(one, "responses", place) for one in responses], ratings, finished


def _feedback(record: Record, count: int, place: str) -> list[str | None]:
    value = record.get("feedback")
    if value is None:
        return [None] * count
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or len(texts) != count:
        raise InputError(f"{place}: field 'feedback': expected {count} texts, one an output, got {value!r:.40}")
    for text in texts:
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise InputError(f"{place}: field 'feedback': expected a text (or null for a template's), got {text!r:.40}")
        if text is not None:
            _records.content(text, "feedback", place)
    return [None if text is None else text.strip() for text in texts]


def _preference(record: Record, place: str) -> tuple[str | tuple[Turn, ...], list[tuple[Turn, ...]]]:
    values = [_records.get(record, field, place) for field in ("chosen", "rejected")]
    if record.get("prompt") is not None:
        prompt = _prompt(record["prompt"], place)
        return prompt, [_answer(v, field, place) for v, field in zip(values, ("chosen", "rejected"), strict=True)]
    chosen, rejected = (
        _dialogue(_records.content(value, field, place))
        for value, field in zip(values, ("chosen", "rejected"), strict=True)
    )
    if isinstance(chosen, str) or isinstance(rejected, str):
        text, first, second = _records.preference(record, place)
        return _prompt(text, place), [_answer(v, f, place) for v, f in ((first, "chosen"), (second, "rejected"))]
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if not shared:
        raise InputError(f"{place}: missing field 'prompt', and 'chosen' and 'rejected' share no first turn")
    answers = [_ends(turns[shared:], field, place) for turns, field in ((chosen, "chosen"), (rejected, "rejected"))]
    return chosen[:shared], answers


def _prompt(value: Any, place: str) -> str | tuple[Turn, ...]:
    prompt = _dialogue(_records.content(value, "prompt", place))
    if isinstance(prompt, tuple) and prompt[-1] == Turn("assistant", ""):
        prompt = prompt[:-1]  # "...\n\nAssistant:" asks for what follows
    if not prompt:
        return "" if isinstance(prompt, str) else ()
    if isinstance(prompt, tuple) and prompt[-1].role == "assistant":
        raise InputError(f"{place}: field 'prompt': its last turn is the assistant's; an output would answer itself")
    return prompt


def _answer(value: Any, field: str, place: str) -> tuple[Turn, ...]:
    answer = _records.answer(value, field, place)
    if isinstance(answer, str):
        return (Turn("assistant", answer.strip()),)
    return _ends(_turns(answer), field, place)


def _ends(turns: Sequence[Turn], field: str, place: str) -> tuple[Turn, ...]:
    if turns[-1].role != "assistant":
        raise InputError(f"{place}: field {field!r}: the last turn is by {turns[-1].role!r}, not 'assistant'")
    if any(turn.role == "assistant" and not turn.content for turn in turns):
        raise InputError(f"{place}: field {field!r}: empty completion")
    return tuple(turns)


def _dialogue(content: Content) -> str | tuple[Turn, ...]:
    """Messages, and texts that begin with a turn, as turns; other texts as they are."""
    if not isinstance(content, str):
        return _turns(content)
    text = content.strip()
    if _TURN.match(text) is None:
        return content
    _, *parts = _TURN.split(text)
    return tuple(Turn(_ROLES[role], said.strip()) for role, said in zip(parts[::2], parts[1::2], strict=True))


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[Turn, ...]:
    return tuple(Turn(message["role"], message["content"].strip()) for message in messages)
