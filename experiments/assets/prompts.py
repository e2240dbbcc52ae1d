"""Prompts of the sentiment study: the first 2-8 tokens of a held-out review, alone or as an assistant's opening.

A base model continues the opening as it is, after a newline (where a document starts). An instruction-tuned model left
alone with three tokens drifts off topic; its chat template asks for a review and the opening stands as what the
assistant has already written, so the completion is the rest of the review.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import InputError

__all__ = ["REVIEW_REQUEST", "Prompt", "prefix_prompts"]

REVIEW_REQUEST = "Write a short film review."
"""What the user asks in the chat form."""

# A tokenizer without straight quotes reads them as curly ones and gives curly ones back.
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, as text, and its opening: the words of the review, which belong to what is scored."""

    ids: tuple[int, ...]
    text: str
    opening: str


def prefix_prompts(
    tokenizer: Any,
    reviews: Sequence[str],
    seed: int,
    low: int = 2,
    high: int = 8,
    *,
    chat: str | None = None,
    lead: str = "\n",
) -> list[Prompt]:
    """One prompt per review: its first ``k`` tokens, ``k`` uniform on ``low..high`` (both included).

    ``chat`` is the user's request; the ids are then the tokenizer's chat template up to the start of the assistant's
    answer, followed by the opening. Without it they are the ids of ``lead`` followed by the opening. Segments are
    tokenised separately and their ids joined. ``k`` of review ``i`` depends on ``seed`` and ``i`` only. A review with
    fewer than ``k`` tokens, or whose opening does not decode back to its own text (an unknown character, half a
    character), is left out; curly and straight quotes count as the same, and the opening's text has straight ones.
    ``tokenizer`` needs ``encode`` and ``decode``, and ``apply_chat_template`` for ``chat``.
    """
    if not 1 <= low <= high:
        raise InputError(f"prefix lengths {low}..{high}: need 1 <= low <= high")
    before = lead
    if chat is not None:
        before = tokenizer.apply_chat_template(
            [{"role": "user", "content": chat}], tokenize=False, add_generation_prompt=True
        )
    before_ids = tuple(tokenizer.encode(before, add_special_tokens=False)) if before else ()
    lengths = np.random.default_rng(seed).integers(low, high + 1, size=len(reviews))
    prompts = []
    for review, length in zip(reviews, lengths.tolist(), strict=True):
        # Tokens average far below 16 characters; the whole review need not be tokenised.
        ids = tuple(tokenizer.encode(review[: 16 * high], add_special_tokens=False))[:length]
        opening = tokenizer.decode(ids).translate(_STRAIGHT)
        if len(ids) == length and opening and review.translate(_STRAIGHT).startswith(opening):
            prompts.append(Prompt(before_ids + ids, before + opening, opening))
    if reviews and not prompts:
        raise InputError("no review gives a prompt: the tokenizer decodes none of their openings back to their text")
    return prompts
