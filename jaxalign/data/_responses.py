"""A sampled response as an example: what a record would be, also where it says nothing."""

from __future__ import annotations

from typing import Any

from jaxalign.data import _records
from jaxalign.data._builders import _answer, _assemble, _context, _prompt
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._example import Example
from jaxalign.data._truncation import Truncation
from jaxalign.errors import InputError

__all__ = ["response_example", "stop_tokens"]


def response_example(
    prompt: Any,
    response: str,
    tokenizer: TokenizerLike | Encoder,
    *,
    finished: bool = True,
    truncation: Truncation | None = None,
    record_id: int = 0,
    place: str | None = None,
) -> Example:
    """``[prompt | response]`` as ``completion_example`` has it of a record of the same texts: EOS where finished.

    A record's completion must say something. A response need not: one that ended at once is its EOS alone.

    Raises ``InputError``: a prompt that is neither text nor messages, or a response of no token at all.
    """
    context = _context(tokenizer, Truncation() if truncation is None else truncation, record_id, place, None)
    content = _records.content(prompt, "prompt", context.place)
    if not isinstance(response, str):
        raise InputError(f"{context.place}: the response is a {type(response).__name__}, not a string")
    segments = _answer(context, content, response, finished, "completion")
    return _assemble(context, _prompt(context, content), [segments], ["completion"])


def stop_tokens(prompt: Any, tokenizer: TokenizerLike | Encoder, *, place: str | None = None) -> tuple[int, ...]:
    """The ids that end a response to a prompt: the EOS, and of messages the chat template's own end of turn.

    Raises ``InputError`` as ``response_example`` does.
    """
    context = _context(tokenizer, Truncation(), 0, place, None)
    ids = {context.encoder.eos}
    if not isinstance(prompt, str):
        ids.add(int(response_example(prompt, "a", context.encoder, place=context.place).targets[-1]))
    return tuple(sorted(ids))
