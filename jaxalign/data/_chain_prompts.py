"""Chains to go on from: what a model trained in hindsight is asked, and answers to compare under one marker."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from jaxalign.data._answers import answers_example
from jaxalign.data._chain_format import ChainFormat
from jaxalign.data._chain_writer import ChainWriter, Mark, Written
from jaxalign.data._encoder import Encoder, TokenizerLike
from jaxalign.data._example import Example
from jaxalign.data._feedback_records import Output, Turn, rated_outputs
from jaxalign.data._records import Record
from jaxalign.data._templates import FeedbackKind, Marker, Polarity, parse_templates
from jaxalign.errors import InputError

__all__ = ["FeedbackPrompts", "load_feedback_prompts"]

FILE = "hindsight.json"


class FeedbackPrompts:
    """How a model that was trained on chains is asked for outputs: after words of feedback, as in training.

    ``polarity`` "positive" asks for a good output, "negative" for a bad one; ``template`` names the template, by
    default the first that training drew, or else one that says the same. A model of a baseline without feedback is
    asked in its neutral words, whatever the polarity.
    """

    def __init__(self, writer: ChainWriter) -> None:
        self.writer = writer

    def tokens(
        self,
        prompt: Any,
        polarity: Polarity = "positive",
        *,
        template: str | None = None,
        kind: FeedbackKind | None = None,
        place: str = "prompt",
    ) -> list[int]:
        """Ids of the prompt and the first marker of a template that begins with that polarity."""
        turns, kind = self._parse(prompt, kind, place)
        written = self._asked(turns, self.writer.choice.opening(kind, polarity, template), place)
        return written.ids

    def better(
        self,
        prompt: Any,
        output: str,
        *,
        template: str | None = None,
        kind: FeedbackKind | None = None,
        place: str = "prompt",
    ) -> list[int]:
        """Ids of the prompt, an output as the worse one, and the words that ask for a better: iterative improvement.

        Raises ``InputError`` for a model without feedback.
        """
        if self.writer.form.markers != "feedback":
            raise InputError("this model was trained without feedback: it cannot be asked for better outputs")
        turns, kind = self._parse(prompt, kind, place)
        if not output.strip():
            raise InputError(f"{place}: there is no output to be bettered")
        first, second = self.writer.choice.better(kind, template)
        worse = Output((Turn("assistant", output.strip()),), None)
        written = Written([], [], [], [])
        self.writer.say(written, [*self.writer.prompt(turns, place), *self.writer.output(worse, place)], first)
        repeats = self.writer.form.repeats(turns)
        if repeats:
            self.writer.say(written, self.writer.prompt(turns, place, repeated=True), second)
        self.writer.mark(written, second, joined=not repeats)
        return written.ids

    def stop_strings(self, kind: FeedbackKind = "answer") -> list[str]:
        """Texts with which the next marker, or a person's next turn, begins: a sample ends there.

        None where outputs end with an EOS of their own: the same words inside an answer would cut it.
        """
        form, templates = self.writer.form, self.writer.templates
        if form.markers != "feedback" or form.end_of_output == "each":
            return []
        found = {self.writer.texts(marker)[-1] for marker in self.writer.choice.following(kind)}
        if kind == "dialogue":
            found.add(templates.between + templates.user)
        return sorted(found)

    def comparison(
        self,
        record: Record,
        polarity: Polarity = "positive",
        *,
        template: str | None = None,
        place: str = "record",
        record_id: int = 0,
    ) -> Example:
        """``[prompt, marker of a good output | y1 | ... | yk]``: answers of a rated record to compare by likelihood.

        With ``polarity`` "negative" the marker is that of a bad output. Pairs are all (better, worse). Raises
        ``InputError`` as ``rated_outputs`` does, and where none is better.
        """
        rated = rated_outputs(record, place, kind=self.writer.form.kind)
        ratings = [output.rating for output in rated.outputs]
        if not rated.rated or len(ratings) < 2:
            raise InputError(f"{place}: needs at least two rated outputs")
        pairs = [(i, j) for i, a in enumerate(ratings) for j, b in enumerate(ratings) if a > b]  # type: ignore[operator]
        if not pairs:
            raise InputError(f"{place}: field 'ratings': all are equal, none is better")
        marker = self.writer.choice.opening(rated.kind, polarity, template)
        outputs = [self.writer.output(output, place) for output in rated.outputs]
        # The marker is the prompt's where all outputs begin with it; dialogues may part at what a person says.
        asked = self._asked(rated.prompt, marker, place, marked=all(isinstance(parts[0], Mark) for parts in outputs))
        answers, supervised = [], []
        for parts in outputs:
            written = Written([], [], [], [])
            self.writer.say(written, [*self.writer.prompt(rated.prompt, place), *parts], marker, last=True)
            answers.append(written.ids[len(asked.ids) :])
            supervised.append(written.output[len(asked.ids) :])
        return answers_example(asked.ids, answers, record_id=record_id, pairs=pairs, supervised=supervised)

    def check(self, kinds: Iterable[FeedbackKind]) -> None:
        """Raises ``InputError`` where outputs of a kind cannot be asked for."""
        for kind in kinds:
            self.writer.choice.opening(kind, "positive")

    def save(self, folder: str | Path, *, kinds: Collection[FeedbackKind] = ()) -> None:
        """Write ``hindsight.json`` into a model's folder, from which ``load_feedback_prompts`` reads.

        ``kinds`` are those of outputs to texts that it was trained on: if there is one, texts are asked for it.
        """
        form = self.writer.form
        held = {
            "format": dataclasses.asdict(form) | ({"kind": next(iter(kinds))} if len(kinds) == 1 else {}),
            "templates": self.writer.templates.as_dict(),
            "templates_name": self.writer.templates.name,
        }
        Path(folder, FILE).write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _parse(self, prompt: Any, kind: FeedbackKind | None, place: str) -> tuple[str | tuple[Turn, ...], FeedbackKind]:
        record = {"prompt": prompt, "completion": "a", "label": True} | ({} if kind is None else {"kind": kind})
        rated = rated_outputs(record, place, kind=self.writer.form.kind)
        return rated.prompt, rated.kind

    def _asked(self, prompt: str | tuple[Turn, ...], marker: Marker, place: str, *, marked: bool = True) -> Written:
        """The prompt, as in training, and the words that ask for an output."""
        written = Written([], [], [], [])
        self.writer.say(written, self.writer.prompt(prompt, place), marker)
        if marked:
            self.writer.mark(written, marker)
        if not written.ids:
            raise InputError(f"{place}: field 'prompt' is empty and the tokenizer has no BOS to start from")
        return written


def _held(folder: str | Path) -> Path:
    """The file in a folder, or of a hub id in the hub's cache."""
    if Path(folder).is_dir():
        return Path(folder, FILE)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(folder), FILE))
    except Exception as error:  # the client raises its own, httpx' and OS errors; all mean "not to be had"
        raise FileNotFoundError(FILE) from error


def load_feedback_prompts(folder: str | Path, tokenizer: TokenizerLike | Encoder) -> FeedbackPrompts:
    """How the model in a folder is asked, as its training wrote it beside the weights.

    Raises:
      InputError: no ``hindsight.json`` there, or one that cannot be read.
    """
    path = Path(folder, FILE)
    try:
        path = _held(folder)
        held = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in held["format"].items()}
        form = ChainFormat(**fields)
        templates = parse_templates(held["templates"], held["templates_name"])
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no {FILE}: this model was not trained by jaxalign hindsight; it has no words of feedback"
        ) from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    return FeedbackPrompts(ChainWriter(tokenizer, templates, form))
