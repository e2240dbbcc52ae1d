"""Chat messages to segments through the tokenizer's own template, with the assistant's turns exactly marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxalign.data._encoder import Encoder
from jaxalign.data._records import Message
from jaxalign.errors import InputError

__all__ = ["Segment", "conversation_segments", "render_prompt"]

# Stands in for a turn's content to see what a template puts after it.
_PLACEHOLDER = "jaxalign0content"


@dataclasses.dataclass(frozen=True)
class Segment:
    """Token ids that are all supervised or all not."""

    ids: Sequence[int]
    supervised: bool


def _render(encoder: Encoder, messages: Sequence[Message], place: str, **options: Any) -> str:
    apply = getattr(encoder.tokenizer, "apply_chat_template", None)
    if apply is None:
        raise InputError(f"{place}: messages need a tokenizer with a chat template, this one has none")
    try:
        return str(apply([dict(message) for message in messages], tokenize=False, **options))
    except Exception as error:
        # Templates raise what they like (jinja2 errors, ValueError where there is no template).
        raise InputError(f"{place}: the chat template refuses the messages: {str(error).splitlines()[0]}") from error


def render_prompt(encoder: Encoder, messages: Sequence[Message], place: str) -> str:
    """The text up to where the assistant's answer begins; a last message by the assistant is left open."""
    if messages and messages[-1]["role"] == "assistant":
        return _render(encoder, messages, place, continue_final_message=True)
    return _render(encoder, messages, place, add_generation_prompt=True)


def _first_special(encoder: Encoder, text: str) -> tuple[int, str] | None:
    """Offset and text of the first special token in a text (of two at one place, the longer)."""
    found = [(offset, token) for token in encoder.special_tokens if (offset := text.find(token)) >= 0]
    return min(found, key=lambda item: (item[0], -len(item[1])), default=None)


def _split_turn(encoder: Encoder, turn: str, content: str, messages: Sequence[Message], place: str) -> tuple[str, str]:
    """(text of the answer, text of its end-of-turn token or "") of a rendered assistant turn."""
    for written in (content, content.strip()):
        if turn.startswith(written):
            after = len(written)
            break
    else:  # the template puts something before the content (a space, an empty thought): see what it puts after it
        sample = _render(encoder, [*messages[:-1], {"role": "assistant", "content": _PLACEHOLDER}], place)
        tail = sample[sample.rfind(_PLACEHOLDER) + len(_PLACEHOLDER) :]
        after = len(turn) - len(tail)
        if _PLACEHOLDER not in sample or not turn.endswith(tail) or not turn[:after].endswith(content.strip()):
            raise InputError(f"{place}: the chat template changes the text of an assistant message")
    special = _first_special(encoder, turn[after:])
    if special is None:
        return turn[:after], ""
    offset, token = special
    return turn[: after + offset], token


def conversation_segments(
    encoder: Encoder, messages: Sequence[Message], *, start: int, finished: bool, place: str
) -> list[Segment]:
    """Segments of a conversation from message ``start`` on; assistant turns are supervised, all else is not.

    ``start=0`` gives the whole conversation, BOS included. Otherwise what comes before is the prompt,
    ``render_prompt(messages[:start])``, and is not repeated. Each supervised turn is the difference of two renderings,
    with and without it, and ends with the template's end-of-turn token; where the template has none the last turn ends
    with EOS. ``finished=False`` leaves the last turn open. Nothing after the last assistant turn is kept.

    Raises ``InputError`` when a rendering is not the beginning of the next (the template is not prefix-stable).
    """
    segments: list[Segment] = []
    written = render_prompt(encoder, messages[:start], place) if start else ""
    continuation: str | None = None
    if start and messages[start - 1]["role"] == "assistant":  # the prompt is the answer's own beginning
        if start == len(messages) or messages[start]["role"] != "assistant":
            raise InputError(f"{place}: the prompt ends inside an assistant message, which the answer must continue")
        continuation = messages[start]["content"]
        joined = {"role": "assistant", "content": messages[start - 1]["content"] + continuation}
        messages = [*messages[: start - 1], joined, *messages[start + 1 :]]
        start -= 1
    turns = [index for index in range(start, len(messages)) if messages[index]["role"] == "assistant"]
    for index in turns:
        through = _render(encoder, messages[: index + 1], place)
        if continuation is not None and index == start:
            before, content = written, continuation
        else:
            before = _render(encoder, messages[:index], place, add_generation_prompt=True)
            content = messages[index]["content"]
        if not before.startswith(written) or not through.startswith(before):
            raise InputError(f"{place}: the chat template is not prefix-stable at message {index + 1}")
        context = before[len(written) :]
        if context:
            segments.append(Segment(encoder.following(context) if written else encoder.first(context), False))
        text, end = _split_turn(encoder, through[len(before) :], content, messages[: index + 1], place)
        last = index == turns[-1]
        ids = encoder.following(text) if before else encoder.first(text)
        if end or last:
            token = encoder.raw(end) if end else [encoder.eos]
            ids = encoder.close(ids, finished=finished or not last, eos=token[-1])
        segments.append(Segment(ids, True))
        written = before + text + end
    return segments
