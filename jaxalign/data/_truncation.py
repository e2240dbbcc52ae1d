"""Length limits, in tokens: a named policy, counted, and never a silently lost completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxalign.data._counters import Counters
from jaxalign.data._records import RecordDropped
from jaxalign.errors import InputError

PromptPolicy = Literal["error", "keep_end", "drop"]
CompletionPolicy = Literal["cut", "drop", "error"]

__all__ = ["CompletionPolicy", "PromptPolicy", "Truncation"]


@dataclasses.dataclass(frozen=True)
class Truncation:
    """Limits in tokens, special tokens included, and what happens to what is longer.

    The limits are of one *sequence* (prompt + one answer): a pair of answers that share a prompt may take
    ``max_length`` tokens each. Policies: "error" = ``InputError`` naming row and lengths; "drop" = the record is left
    out and counted; "keep_end" = the prompt loses its beginning (BOS stays first) and is counted; "cut" = the
    completion loses its end, gets no EOS, and is counted.
    """

    max_length: int | None = None
    """Most tokens of prompt + answer; None = no limit."""
    max_prompt_length: int | None = None
    """Most tokens of a prompt. None = a prompt gives way to its longest answer, down to half of ``max_length``."""
    prompt: PromptPolicy = "error"
    """What happens to a prompt over its limit."""
    completion: CompletionPolicy = "cut"
    """What happens to an answer (or text, or conversation) that goes over ``max_length``."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"max_length is {self.max_length}, must be at least 2")
        if self.max_prompt_length is not None:
            if self.max_prompt_length < 1:
                raise InputError(f"max_prompt_length is {self.max_prompt_length}, must be at least 1")
            if self.max_length is not None and self.max_prompt_length >= self.max_length:
                raise InputError(
                    f"max_prompt_length {self.max_prompt_length} leaves no room for an answer in "
                    f"max_length {self.max_length}"
                )
        for name, value, known in (
            ("prompt", self.prompt, ("error", "keep_end", "drop")),
            ("completion", self.completion, ("cut", "drop", "error")),
        ):
            if value not in known:
                raise InputError(f"truncation policy of the {name} is {value!r}, must be one of {', '.join(known)}")

    def prompt_ids(
        self, ids: Sequence[int], answer_lengths: Sequence[int], *, bos: int | None, place: str, counters: Counters
    ) -> list[int]:
        """The prompt within its limit. ``answer_lengths`` are those of its answers (empty: a prompt alone)."""
        limit = self.max_prompt_length
        if limit is None and self.max_length is not None:
            limit = max(self.max_length // 2, self.max_length - max(answer_lengths, default=0))
        if limit is None or len(ids) <= limit:
            return list(ids)
        of = f"max_prompt_length {limit}"
        if self.max_prompt_length is None:
            of = f"max_length {self.max_length}"
        beside = (
            f" beside an answer of {max(answer_lengths)}" if self.max_prompt_length is None and answer_lengths else ""
        )
        message = f"{place}: field 'prompt' has {len(ids)} tokens, room is for {limit}{beside} ({of})"
        if self.prompt == "error":
            raise InputError(f"{message}; raise the limit or choose prompt truncation 'keep_end' or 'drop'")
        if self.prompt == "drop":
            raise RecordDropped(message, "prompt over the limit")
        counters.truncated["prompt: keep_end"] += 1
        if bos is not None and ids[0] == bos and limit > 1:
            return [bos, *ids[len(ids) - limit + 1 :]]
        return list(ids[len(ids) - limit :])

    def answer_length(self, length: int, prompt_length: int, *, place: str, field: str, counters: Counters) -> int:
        """How many of an answer's tokens are kept beside ``prompt_length`` tokens of prompt."""
        if self.max_length is None or prompt_length + length <= self.max_length:
            return length
        of_prompt = f" after {prompt_length} of its prompt" if prompt_length else ""
        message = f"{place}: field {field!r} has {length} tokens{of_prompt}, more than max_length {self.max_length}"
        if self.completion == "error":
            raise InputError(f"{message}; raise the limit or choose completion truncation 'cut' or 'drop'")
        if self.completion == "drop":
            raise RecordDropped(message, "completion over the limit")
        counters.truncated["completion: cut"] += 1
        return self.max_length - prompt_length
