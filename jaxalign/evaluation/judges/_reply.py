"""What came back from an endpoint: an answer, or a reason why there is none and whether asking again may help."""

import json
from dataclasses import dataclass
from typing import Any

from jaxalign.evaluation.judges._limits import retry_after

__all__ = ["Failure", "Reply", "failure_of", "read_reply", "valid_text"]

_MOST_TOKENS = 2**40
# Too late, in conflict, too many; and whatever is the server's own fault.
_PASSING = (408, 409, 429)
# What is wrong with this question, or with a setting; any other status is wrong for every comparison.
_REFUSED = (400, 413, 422)
_REFUSED_CODES = ("content_filter", "content_policy_violation")
_FINAL_CODES = (
    "insufficient_quota", "invalid_api_key", "invalid_model", "model_not_found", "unknown_parameter",
    "unsupported_parameter", "unsupported_value",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """An answer."""

    text: str
    finished: bool
    """It ended by itself: neither cut nor withheld."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """No answer."""

    reason: str
    passing: bool = False
    """Asking again may help."""
    final: bool = False
    """No question would be answered."""
    refused: bool = False
    """This question will never be answered: too long, or withheld by a filter."""
    retry_after: float | None = None
    """Seconds that the server asks to stay away."""


def valid_text(text: str) -> str:
    """The text without halves of characters, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_reply(body: str) -> Reply | Failure:
    """The answer in a chat completion's body; one that is no such body is a failure that may pass."""
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = choice["message"].get("content")
        if text is None:  # withheld, or all of it spent on thoughts: an answer without words
            text = choice["message"].get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError("'content' is not text")
        usage = content.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        if not all(0 <= count < _MOST_TOKENS for count in counts):
            raise ValueError("tokens that cannot be")
        finished = choice.get("finish_reason") not in ("length", "content_filter")
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        return Failure(f"a body that is no chat completion ({type(error).__name__}): {_line(body)}", passing=True)
    return Reply(valid_text(text), finished, *counts)


def failure_of(error: Exception, timeout: float) -> Failure:
    """What an exception of the client means. Raises it again where it is none that a request can bring."""
    import openai

    if isinstance(error, TimeoutError):
        return Failure(f"no answer within {timeout:g} s", passing=True)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        return Failure(f"no connection: {type(cause).__name__} {_line(cause)}".rstrip(), passing=True)
    if not isinstance(error, openai.APIStatusError):
        raise error
    status, headers = error.status_code, error.response.headers
    reason = f"status {status}: {_line(error)}"
    code = _code(error)
    if code in _REFUSED_CODES:
        return Failure(reason, refused=True)
    if code not in _FINAL_CODES:
        if status in _PASSING or status >= 500:
            return Failure(reason, passing=True, retry_after=retry_after(headers))
        if status in _REFUSED:
            return Failure(reason, refused=True)
    return Failure(reason, final=True)


def _code(error: Any) -> Any:
    return error.body.get("code") if isinstance(error.body, dict) else None


def _line(said: BaseException | str) -> str:
    return " ".join(str(said).split())
