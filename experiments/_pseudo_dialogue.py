"""Pseudo-dialogues (Liu et al. 2023, section 4.3): every turn of the assistant in a real dialogue is said anew.

People's turns stay as they are, and each new turn answers the real dialogue up to there: so methods are compared on the
same dialogues without anyone to talk to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxalign import data, recipes
from jaxalign.data import FeedbackPrompts
from jaxalign.models import ModelConfig

__all__ = ["PseudoDialogue", "pseudo_dialogue", "say_anew"]

Params = Any
Message = dict[str, str]


@dataclass(frozen=True)
class PseudoDialogue:
    """A dialogue whose assistant's turns are to be said anew."""

    histories: tuple[list[Message], ...]
    """What stands before each of them."""
    preferred: str
    """The last one as it was, the better answer of two."""
    other: str
    """The worse one."""

    @property
    def item(self) -> str:
        """What the last of them answers, as text."""
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.histories[-1])


def pseudo_dialogue(record: Any) -> PseudoDialogue:
    """Of a preference.

    Raises:
      InputError: what ``data.rated_outputs`` refuses.
    """
    rated = data.rated_outputs(record, "record", kind="dialogue")
    before = (data.Turn("user", rated.prompt),) if isinstance(rated.prompt, str) else rated.prompt
    better, worse = sorted(rated.outputs, key=lambda output: -(output.rating or 0.0))[:2]
    turns = [{"role": turn.role, "content": turn.content} for turn in (*before, *better.turns)]
    places = [index for index, turn in enumerate(turns) if turn["role"] == "assistant" and index]
    histories = tuple(turns[:index] for index in places)
    return PseudoDialogue(histories, better.turns[-1].content, worse.turns[-1].content)


def say_anew(
    config: ModelConfig,
    params: Params,
    prompts: FeedbackPrompts,
    dialogues: Sequence[PseudoDialogue],
    *,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[str]]:
    """The likeliest turns of the assistant after the words of a good one, of each dialogue."""
    histories = [history for dialogue in dialogues for history in dialogue.histories]
    drafts = iter(
        recipes.sample_with_feedback(
            config, params, prompts, histories, jax.random.key(seed), kind="dialogue", temperature=0.0,
            max_new_tokens=max_new_tokens, batch_size=batch_size,
        )
    )  # fmt: skip
    return [[next(drafts).texts[-1] for _ in dialogue.histories] for dialogue in dialogues]
