"""Dialogues as feedback: which of two answers people prefer, told by likelihood after the words of a good one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments._hindsight import asked_prompts
from experiments._hindsight_summaries import plain_texts
from experiments._hindsight_tasks import AXIS, Axis, Measured, Published, forgetting, load_model, text_windows
from experiments._pseudo_dialogue import PseudoDialogue, pseudo_dialogue, say_anew
from experiments._stages import Report, digest
from jaxalign import data, evaluation, recipes
from jaxalign.data import FeedbackKind, FeedbackPrompts, Polarity
from jaxalign.errors import InputError
from jaxalign.training import fingerprint

__all__ = ["Dialogue", "DialogueTask"]

Params = Any


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Where dialogues and pretraining text come from."""

    model: str = "smollm2"
    """"smollm2" (packaged), or a model folder or hub id."""
    feedback: tuple[str, ...] = ("piqa",)
    """"piqa" (packaged: a goal, the right and the wrong way), "hh-sample" (1,156 rows of Anthropic-HH, where they lie
    beside the checkout), or files or hub ids of preferences."""
    held_out_dataset: str | None = None
    """A file or hub id of preferences to measure on; None = the last of ``feedback``'s."""
    held_out_split: str = "test"
    """Its split."""
    held_out: int = 160
    """Preferences to measure on."""
    records: int | None = None
    """Train on so many of the rest; None = all."""
    spoken: int = 48
    """Of these, dialogues whose assistant's turns are said anew by every model, for the pairwise table."""
    max_new_tokens: int = 32
    """Most tokens of such a turn."""
    sampling_batch: int = 32
    """Turns sampled together."""
    max_tokens: int = 256
    """Preferences with a longer prompt and answer are not measured on (they are cut in training)."""
    pretraining: str = "reviews"
    """"reviews" (packaged IMDb), or a file or hub id of rows with ``text``."""
    templates: str = "talk"
    """Words of feedback."""
    seed: int = 0
    """Of which preferences are held out."""


class DialogueTask:
    """Preferences between answers; one that asks the same as another never lies on the other side."""

    kind: FeedbackKind = "dialogue"
    score = "accuracy: the preferred answer is the likelier after the words of a good one (%)"
    unit = "accuracy, %"
    decimals = 1
    paper = Published(
        source="Liu et al. 2023, section 4.4",
        pairwise="Liu et al. 2023, table 2, where people judge",
        scores={
            "Base": "43.8", "SFT": "64.8", "C-SFT": "78.8", "SFT-U": "42.3", "CoH": "81.2",
            "CoH, no forgetful mask": "79.6", "CoH, no chain": "78.8", "CoH, no pretraining term": "60.8",
            "RLHF (PPO)": "68.8",
        },
    )  # fmt: skip
    axes = (
        Axis(
            "like the preferred",
            "ROUGE-1 F of the last turn and the preferred answer; where the paper has helpful",
            0.02,
        ),
        Axis(
            "unlike the rejected",
            "1 - ROUGE-1 F of the last turn and the rejected answer, 0 of no words; where the paper has harmless",
            0.02,
        ),
    )

    def __init__(self, settings: Dialogue, text_length: int) -> None:
        self.settings, self.templates = settings, settings.templates
        self.config, self.start, self.tokenizer = load_model(settings.model)
        records = [record for source in settings.feedback for record in _preferences(source, settings.seed)]
        if settings.held_out_dataset is None:
            train, held_out = _split(records, settings.held_out)
        else:
            train = records
            found = data.load_feedback(settings.held_out_dataset, settings.held_out_split)
            # At random: files of several sets, such as Anthropic-HH's, lie one behind the other.
            order = np.random.default_rng(settings.seed).permutation(len(found))[: settings.held_out]
            held_out = [found[index] for index in order.tolist()]
        self._held_out = [record for record in held_out if self._fits(record)]
        self.records: Sequence[Any] = train[: settings.records]
        if not self._held_out or not self.records:
            raise InputError(
                f"--task.held-out: {len(self._held_out)} preferences to measure on, {len(self.records)} to train on"
            )
        windows = text_windows(plain_texts(settings.pretraining, settings.seed), self.tokenizer, text_length)
        self.text, self._held_text = windows.train, windows.held_out
        self._dialogues = self._spoken()
        self.items = [dialogue.item for dialogue in self._dialogues]
        self.setting = f"{settings.model}, {', '.join(settings.feedback)}"
        self.inputs = {
            "weights": digest(sorted(fingerprint(self.start).items())), "pretraining": data.fingerprint(self.text),
            "held out": digest([dict(record) for record in self._held_out]),
            "spoken": [len(self._dialogues), settings.max_new_tokens, [axis.judge for axis in self.axes]],
        }  # fmt: skip

    def measure(
        self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report, details: bool = True
    ) -> Measured:
        asked = asked_prompts(self.tokenizer, None, self.templates, self.kind) if prompts is None else prompts
        report(0, len(self._held_out), "measuring")
        margins = self._margins(params, asked, "positive")
        found = {
            "score": [100.0 * float(margin > 0) for margin in margins],
            "margin, nats": [float(margin) for margin in margins],
        }
        found |= self._speak(params, asked)
        if details:
            found["plain text, nats a token"] = forgetting(self.config, params, self._held_text)
        if asked.writer.form.markers == "feedback":
            bad = self._margins(params, asked, "negative")
            found["score, bad words"] = [100.0 * float(margin > 0) for margin in bad]
            found["margin, bad words"] = [float(margin) for margin in bad]
        return found

    def _spoken(self) -> list[PseudoDialogue]:
        found = (pseudo_dialogue(record) for record in self._held_out)
        return [dialogue for dialogue in found if dialogue.histories][: self.settings.spoken]

    def _speak(self, params: Params, prompts: FeedbackPrompts) -> Measured:
        """Every dialogue said anew, and what its last turn scores on every axis."""
        turns = say_anew(
            self.config, params, prompts, self._dialogues, seed=self.settings.seed,
            max_new_tokens=self.settings.max_new_tokens, batch_size=self.settings.sampling_batch,
        )  # fmt: skip
        last = [said[-1] for said in turns]
        likeness, unlikeness = (
            evaluation.rouge(last, [getattr(dialogue, name) for dialogue in self._dialogues])["rouge1"]
            for name in ("preferred", "other")
        )
        spoke = np.array([bool(text.split()) for text in last])  # who says nothing is not to be preferred for it
        scores = {"like the preferred": likeness.tolist(), "unlike the rejected": ((1.0 - unlikeness) * spoke).tolist()}
        outputs = ["\n\n".join(said) for said in turns]
        return {"output": outputs, **{AXIS + name: values for name, values in scores.items()}}

    def _margins(self, params: Params, prompts: FeedbackPrompts, polarity: Polarity) -> np.ndarray:
        examples = [
            prompts.comparison(record, polarity, record_id=index) for index, record in enumerate(self._held_out)
        ]
        return recipes.likelihood_margins(self.config, params, examples, batch_size=16)

    def _fits(self, record: Any) -> bool:
        """Whether it can be measured at all: two answers that say something, within the limit."""
        prompts = asked_prompts(self.tokenizer, None, self.templates, self.kind)
        try:
            return int(prompts.comparison(record).positions.max()) < self.settings.max_tokens
        except InputError:
            return False


def _preferences(source: str, seed: int) -> list[Any]:
    if source == "piqa":
        from experiments.assets.piqa import load_piqa

        return [
            {"prompt": [{"role": "user", "content": choice.goal}], "chosen": choice.right, "rejected": choice.wrong}
            for choice in load_piqa(seed)
        ]
    if source == "hh-sample":
        from experiments.assets.hh import packaged_sample

        path = packaged_sample()
        if path is None:
            raise InputError(
                "--task.feedback: hh-sample: the sample does not lie beside this checkout; give a file or hub id"
            )
        source = str(path)
    records = list(data.load_feedback(source, on_bad_row="skip"))
    usable = []
    for record in records:
        try:
            data.rated_outputs(record, source)
        except InputError:
            continue  # two rows of the sample have an empty answer
        usable.append(record)
    return [usable[index] for index in np.random.default_rng(seed).permutation(len(usable))]


def _split(records: Sequence[Any], held_out: int) -> tuple[list[Any], list[Any]]:
    """(train, held out): the last ones, and with them all that ask the same."""
    kept = list(records[len(records) - held_out :]) if held_out < len(records) else []
    asked = {_asked(record) for record in kept}
    return [record for record in records[: len(records) - len(kept)] if _asked(record) not in asked], kept


def _asked(record: Any) -> str:
    prompt = data.rated_outputs(record, "record").prompt
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
