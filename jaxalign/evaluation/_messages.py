"""Messages as one text: what a judge reads, and what makes two prompts the same."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.errors import InputError

__all__ = ["as_text"]


def as_text(content: Any, place: str, *, name: str = "prompt") -> str:
    """A text as it is; of messages each turn after its role, an empty line between two.

    Raises:
        InputError: neither text nor messages; names the place and the field.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or not content:
        raise InputError(f"{place}: field {name!r}: expected text or messages, is {content!r:.40}")
    turns = []
    for message in content:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise InputError(f"{place}: field {name!r}: a message needs 'role' and 'content', both text")
        turns.append(f"{message['role'].capitalize()}: {message['content']}")
    return "\n\n".join(turns)
