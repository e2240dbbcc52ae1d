"""From a prompt, outputs and the words before them to token ids, and which of them are outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chat import render_prompt
from jaxalign.data._encoder import Encoder, TokenizerLike, as_encoder
from jaxalign.data._feedback_records import Output, Turn
from jaxalign.data._responses import response_example
from jaxalign.data._template_choice import TemplateChoice
from jaxalign.data._templates import Marker, TemplateSet
from jaxalign.errors import InputError

__all__ = ["ChainWriter", "Mark", "Words", "Written"]

# What joins a marker to an output before it, in a template such as "A good summary: {positive}, a worse summary: ...".
_JOINTS = " \n\t,.;:-"


@dataclasses.dataclass(frozen=True)
class Words:
    """Text that is never learnt: prompts, a person's turns."""

    ids: tuple[int, ...]
    opens: bool = False
    """Whether it ends as a chat template begins a turn of the assistant: a marker stands right there."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """The place of a marker, and the output that follows it."""

    content: str
    ids: tuple[int, ...]
    """Of a space and the content, as most templates have it."""
    finished: bool = True


@dataclasses.dataclass
class Written:
    """A sequence while it is written."""

    ids: list[int]
    output: list[bool]
    """Whether the token is an output's (its EOS included)."""
    marker: list[bool]
    """Whether it is feedback."""
    negative: list[bool]
    """Whether it is of an output below the best."""
    opened: bool = False
    """Whether its end asks for what follows."""

    def add(self, ids: Sequence[int], *, output: bool = False, marker: bool = False, negative: bool = False) -> None:
        self.ids += ids
        self.opened = False
        for flags, value in ((self.output, output), (self.marker, marker), (self.negative, negative)):
            flags += [value] * len(ids)


class ChainWriter:
    """Writes sequences in a format's way; segments are tokenised apart and their ids joined, so masks are exact.

    White space between a marker and its output goes with the output: there is one before every output, and none where
    a prompt to sample from ends.
    """

    def __init__(self, tokenizer: TokenizerLike | Encoder, templates: TemplateSet, form: ChainFormat) -> None:
        self.encoder = as_encoder(tokenizer)
        self.templates, self.form = templates, form
        self.choice = TemplateChoice(templates, form)
        self._following: dict[str, list[int]] = {}
        self._end: int | None = None

    def prompt(self, prompt: str | tuple[Turn, ...], place: str, *, repeated: bool = False) -> list[Words | Mark]:
        """The parts of a prompt, at a sequence's beginning or ``repeated`` inside it.

        With ``mark_turns`` "all" an assistant's turns in it are outputs, too.
        """
        if not prompt:
            prompt = ""  # of turns, too
        if isinstance(prompt, str):
            text = self.templates.between + prompt if repeated else prompt
            return [self._words(text, not repeated)]
        if self.form.dialogue == "chat_template":
            messages = [dataclasses.asdict(turn) for turn in prompt]
            return [Words(tuple(self.encoder.first(render_prompt(self.encoder, messages, place))), opens=True)]
        return self._turns(prompt, first=not repeated)

    def output(self, output: Output, place: str) -> list[Words | Mark]:
        """The parts of an output: where it is marked, and what a person says in it."""
        if self.form.dialogue == "chat_template" and len(output.turns) > 1:
            raise InputError(
                f"{place}: the outputs part before their last turn; only dialogues written as words "
                "(--dialogue words) can have that"
            )
        parts = self._turns(output.turns, first=False, mark_all=True)
        last = parts[-1]
        assert isinstance(last, Mark)
        return [*parts[:-1], dataclasses.replace(last, finished=output.finished)]

    def _turns(self, turns: Sequence[Turn], *, first: bool, mark_all: bool = False) -> list[Words | Mark]:
        parts: list[Words | Mark] = []
        text = ""
        for number, turn in enumerate(turns):
            joint = "" if first and number == 0 else self.templates.between
            if turn.role == "assistant" and turn.content and (mark_all or self.form.mark_turns == "all"):
                if text:
                    parts.append(self._words(text, first and not parts))
                    text = ""
                parts.append(Mark(turn.content, tuple(self.encoder.following(" " + turn.content))))
            else:
                word = {"user": self.templates.user, "assistant": self.templates.assistant}.get(turn.role)
                text += joint + (f"{word} {turn.content}" if word else turn.content)
        if text:
            parts.append(self._words(text, first and not parts))
        return parts

    def _words(self, text: str, first: bool) -> Words:
        return Words(tuple(self.encoder.first(text) if first else self.encoder.following(text)))

    def following(self, text: str) -> list[int]:
        """Ids of a marker in the middle of a sequence; the same words come again and again."""
        found = self._following.get(text)
        if found is None:
            found = self._following[text] = self.encoder.following(text)
        return found

    def mark(self, written: Written, marker: Marker, *, joined: bool = False) -> None:
        """Write a marker. ``joined``: an output stands right before it, from which it may go on."""
        text = marker.text if joined and marker.joined else _alone(marker)
        if not written.ids:
            written.add(self.encoder.first(text), marker=True)
            return
        if text and not (joined and marker.joined) and not written.opened and not self._open(written):
            text = self.templates.between + text
        if text:
            written.add(self.following(text), marker=True)

    def texts(self, marker: Marker) -> list[str]:
        """Every text as which ``mark`` can write a marker."""
        alone = _alone(marker)
        texts = [alone, self.templates.between + alone] if alone else []
        return [*texts, marker.text] if marker.joined and marker.text else texts

    def _open(self, written: Written) -> bool:
        """Whether words may follow directly: after white space, or a BOS alone."""
        if len(written.ids) == 1 and written.ids[0] in (self.encoder.bos, self.encoder.start):
            return True
        return self.encoder.decode_following(written.ids[-4:])[-1:].isspace()

    def speak(self, written: Written, part: Mark, space: str, *, last: bool, negative: bool) -> None:
        """Write an output, with its EOS where it has one."""
        ids: Sequence[int] = part.ids
        if not written.ids:
            ids = self.encoder.first(part.content)
        elif space != " ":
            ids = self.encoder.following(space + part.content)
        finished = part.finished and (last or self.form.end_of_output == "each")
        written.add(self.encoder.close(ids, finished=finished, eos=self.end), output=True, negative=negative)

    @property
    def end(self) -> int:
        """The id that ends an output: the EOS, or a chat template's end of turn."""
        if self._end is None:
            self._end = self.encoder.eos
            if self.form.dialogue == "chat_template":
                asked: Any = [{"role": "user", "content": "a"}]
                self._end = int(response_example(asked, "a", self.encoder, place="tokenizer").targets[-1])
        return self._end

    def write(
        self,
        prompt: Sequence[Words | Mark],
        chain: Sequence[tuple[Marker, Sequence[Words | Mark], bool]],
        repeated: Sequence[Words | Mark] = (),
    ) -> Written:
        """A whole sequence; ``chain`` has each output's marker, its parts, and whether it is below the best."""
        written = Written([], [], [], [])
        for place, (marker, parts, negative) in enumerate(chain):
            whole = [*(repeated if place else prompt), *parts]
            self.say(written, whole, marker, joined=place > 0, last=place == len(chain) - 1, negative=negative)
        return written

    def say(
        self,
        written: Written,
        parts: Sequence[Words | Mark],
        marker: Marker,
        *,
        joined: bool = False,
        last: bool = False,
        negative: bool = False,
    ) -> None:
        """Write parts in order, a marker before each output. ``joined``: what stands before is an output; ``last``:
        nothing comes after."""
        for number, part in enumerate(parts):
            if isinstance(part, Words):
                written.add(part.ids)
                written.opened = part.opens
                continue
            self.mark(written, marker, joined=joined and number == 0)
            # A chat template that opens a turn with white space needs none more, where no words stand between.
            space = "" if written.opened and self._open(written) else marker.space
            self.speak(written, part, space, last=last and number == len(parts) - 1, negative=negative)


def _alone(marker: Marker) -> str:
    """The words of a marker that does not go on from an output before it."""
    return marker.text.lstrip(_JOINTS) if marker.joined else marker.text.lstrip()
