"""What a sequence of feedback and outputs looks like: the settings of Chain of Hindsight's data and its baselines'."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, get_args, get_origin, get_type_hints

from jaxalign.data._templates import FeedbackKind
from jaxalign.errors import InputError

Structure = Literal["p", "n", "pn", "np", "aux", "chain"]

__all__ = ["ChainFormat", "Structure"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainFormat:
    """How rated outputs become sequences: prompt, then for each output words of feedback and the output."""

    structures: tuple[str, ...] = ("pn", "np")
    """What a record becomes: "p" its best output alone, "n" a worse one alone, "pn" and "np" two of unequal rating,
    better or worse first, "aux" two with paraphrased words, "chain" up to ``chain_length``, graded. NAME=WEIGHT draws
    some more often; all weigh 1 otherwise."""
    emit: Literal["one", "each"] = "one"
    """Of each record and epoch: one sequence, its structure drawn; or each of the structures once."""
    markers: Literal["feedback", "neutral", "none"] = "feedback"
    """Words before an output: feedback, words that say nothing of its quality (for baselines), or none."""
    templates: str = "paper"
    """Words of feedback: "paper", "released", "talk", or a TOML file of your own."""
    template_names: tuple[str, ...] = ()
    """Of the templates, only these; empty = all that suit a record and a structure, drawn."""
    kind: FeedbackKind = "answer"
    """What outputs are, where a record (or a known dataset) does not say: templates have nouns."""
    chain_length: int = 4
    """Most outputs of a "chain"."""
    chain_order: Literal["any", "falling", "rising"] = "any"
    """Order of a "chain": drawn, from best to worst, or from worst to best."""
    dialogue: Literal["words", "chat_template"] = "words"
    """How dialogues are written: as text, with the templates' words before each turn; or by the tokenizer's chat
    template, markers opening the assistant's turn."""
    mark_turns: Literal["differing", "all"] = "differing"
    """Which of an assistant's turns are marked and learnt: those after the outputs part, or also those before, as the
    paper's released code has it."""
    repeat_prompt: Literal["none", "dialogues", "all"] = "none"
    """Whose prompt is given again before every output: the released code repeats dialogues."""
    end_of_output: Literal["each", "last"] = "each"
    """Which outputs end with the end-of-sequence token: each, or the sequence's last alone (samples are then cut at
    the next marker)."""
    learn_markers: bool = False
    """Also learn the words of feedback: an ablation."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(ChainFormat).items():
            if get_origin(kind) is Literal and (value := getattr(self, name)) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"--{name.replace('_', '-')}: expected one of {known}, got {value!r:.40}")
        named = set(self.weights)
        if self.chain_length < 2:
            raise InputError(f"--chain-length: must be at least 2, is {self.chain_length}")
        if self.markers != "feedback":
            if several := sorted(named & {"pn", "np", "aux", "chain"}):
                raise InputError(
                    f"--structures: {several[0]} puts outputs of different quality behind one another, which makes no "
                    f"sense with --markers {self.markers}"
                )
            if self.learn_markers:
                raise InputError(f"--learn-markers: there is no feedback with --markers {self.markers}")
            if self.template_names:
                raise InputError(f"--template-names: no template is read with --markers {self.markers}")
        if "chain" not in named:
            for name in ("chain_length", "chain_order"):
                if getattr(self, name) != {f.name: f.default for f in dataclasses.fields(ChainFormat)}[name]:
                    raise InputError(f"--{name.replace('_', '-')}: --structures names no chain")
        if self.dialogue == "chat_template":
            if self.mark_turns == "all":
                raise InputError("--mark-turns: only dialogues written as words (--dialogue) can")
            if self.repeat_prompt != "none":
                raise InputError("--repeat-prompt: only dialogues written as words (--dialogue) can")
        if self.emit == "each" and any("=" in entry for entry in self.structures):
            raise InputError("--structures: with --emit each every structure is used once; weights draw nothing")
        if self.repeat_prompt != "none" and named <= {"p", "n"}:
            raise InputError("--repeat-prompt: --structures names none with a second output")

    def repeats(self, prompt: object) -> bool:
        """Whether a prompt (a text, or turns) is given again before every output."""
        return self.repeat_prompt == "all" or (self.repeat_prompt == "dialogues" and not isinstance(prompt, str))

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """The structures with their weights. Raises ``InputError`` for one that is none."""
        found: dict[str, float] = {}
        for entry in self.structures:
            name, mark, number = entry.partition("=")
            try:
                weight = float(number) if mark else 1.0
            except ValueError:
                weight = math.nan
            if name not in get_args(Structure) or not (weight > 0 and math.isfinite(weight)):
                raise InputError(
                    f"--structures: {entry!r}: expected {', '.join(get_args(Structure))}, each with or without "
                    "=WEIGHT above 0"
                )
            if name in found:
                raise InputError(f"--structures: {name} twice")
            found[name] = weight
        if not found:
            raise InputError("--structures: name at least one")
        return found
