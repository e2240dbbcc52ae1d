"""Blocks of prompts, sampled and rated."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign import data, models, sampling
from jaxalign.data import Encoder, Prompt
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes._verdicts import Answers, Comparison, RecordForm, comparisons_of
from jaxalign.sampling import TextJudge, TextReward

__all__ = ["CollectSettings", "Collection", "shown_comparisons"]

# Folded into the seed for what is drawn: samples, and which comparisons in which order.
SAMPLES, COMPARISONS = 0x5A3F, 0xC03A

_unstack = jax.jit(models.unstack, static_argnames="config")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What is sampled, and what is written of it."""

    samples_per_prompt: int = 4
    """Responses to each prompt."""
    max_new_tokens: int = 64
    """Most tokens of a response."""
    temperature: float = 1.0
    """Softmax temperature."""
    top_k: int = 0
    """Keep the K likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that hold this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this likely against the likeliest; 0 keeps all."""
    comparisons_per_prompt: int = 0
    """Most pairs of a prompt's responses that a judge (or people) compare, drawn at random; 0 = all."""
    records: RecordForm = "ratings"
    """What is written: "ratings" = a record a prompt with responses and ratings; or chosen and rejected, of "all" pairs
    with unequal ratings, of the "best_worst" of each prompt, or of "adjacent" ones in the order of ratings."""
    margin: bool = False
    """Write the difference of the ratings into every pair."""
    batch_size: int = 64
    """Responses sampled together."""
    save_every: int = 64
    """Prompts that are sampled, rated and saved at a time; a killed run loses no more."""
    seed: int = 0
    """The same seed gives the same file."""

    def __post_init__(self) -> None:
        for name, least in (
            ("samples_per_prompt", 2), ("max_new_tokens", 1), ("temperature", 0), ("top_k", 0), ("batch_size", 1),
            ("comparisons_per_prompt", 0), ("save_every", 1), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, is {value}")
        if not self.temperature:
            raise InputError("--temperature: 0 gives the same response every time; there would be nothing to compare")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: must be in (0, 1], is {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise InputError(f"--min-p: must be in [0, 1), is {self.min_p}")
        if self.margin and self.records == "ratings":
            raise InputError(
                "--margin: records of ratings have no pairs; it needs --records all, best_worst or adjacent"
            )


class Collection:
    """Samples and rates blocks of prompts; each is a function of its place in the list."""

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        config: CollectSettings,
        rater: TextReward | None,
        judge: TextJudge | None,
    ) -> None:
        self._model_config, self._prompts, self._config = model_config, prompts, config
        self._rater, self._judge = rater, judge
        self._encoder = Encoder(tokenizer)
        self._params = _unstack(model_config, params)
        self._stops: dict[bool, tuple[int, ...]] = {}
        for prompt in prompts:
            chat = not isinstance(prompt.content, str)
            if chat not in self._stops:
                self._stops[chat] = data.stop_tokens(prompt.content, self._encoder, place=prompt.place or None)
        room = model_config.max_positions - config.max_new_tokens
        for index, prompt in enumerate(prompts):
            if len(prompt.tokens) > room:
                raise InputError(
                    f"{self._place(index)} has {len(prompt.tokens)} tokens; with --max-new-tokens "
                    f"{config.max_new_tokens} the model's {model_config.max_positions} positions leave room for {room}"
                )

    def sample(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Responses to prompts start .. stop - 1, as rows of the journal."""
        rows: list[dict[str, Any]] = [{} for _ in range(start, stop)]
        for chat, stops in self._stops.items():  # texts and chats end differently
            chosen = [i for i in range(start, stop) if isinstance(self._prompts[i].content, str) is not chat]
            if chosen:
                for index, responses, finished in self._responses(chosen, stops):
                    rows[index - start] = {"responses": responses, "finished": finished}
        return rows

    def _responses(self, chosen: list[int], stops: tuple[int, ...]) -> Iterator[tuple[int, list[str], list[bool]]]:
        config, count = self._config, self._config.samples_per_prompt
        samples = sampling.generate(
            self._model_config,
            self._params,
            [self._prompts[index].tokens for index in chosen],
            jax.random.fold_in(jax.random.key(config.seed), SAMPLES),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            stop_tokens=stops,
            seeds=chosen,
            samples_per_prompt=count,
            batch_size=config.batch_size,
        )
        texts = []
        for ids, finished in zip(samples.responses(), samples.finished, strict=True):
            texts.append(self._encoder.decode_following(ids[:-1] if finished else ids))
        for offset, index in enumerate(chosen):
            rows = slice(offset * count, (offset + 1) * count)
            yield index, texts[rows], [bool(flag) for flag in samples.finished[rows]]

    def answers(self, row: Mapping[str, Any]) -> Answers:
        """A row of the journal with its prompt."""
        return Answers(self._prompts[row["index"]].content, row["responses"], row["finished"])

    def rate(self, start: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the rater or the judge says of the responses to prompts ``start`` ..., as rows of the journal."""
        answers = [self.answers(row) for row in rows]
        return self._compare(start, answers) if self._judge is not None else self._score(start, answers)

    def _compare(self, start: int, answers: Sequence[Answers]) -> list[dict[str, Any]]:
        assert self._judge is not None
        shown = [shown_comparisons(texts, start + offset, self._config) for offset, texts in enumerate(answers)]
        asked = [(offset, each) for offset, some in enumerate(shown) for each in some]
        verdicts = sampling.compare_texts(
            self._judge,
            [answers[offset].prompt for offset, _ in asked],
            [answers[offset].responses[each.first] for offset, each in asked],
            [answers[offset].responses[each.second] for offset, each in asked],
            names=[self._place(start + offset) for offset, _ in asked],
        )
        compared: list[list[Any]] = [[] for _ in answers]
        for (offset, each), verdict in zip(asked, verdicts, strict=True):
            compared[offset].append([each.first, each.second, verdict])
        return [{"comparisons": some} for some in compared]

    def _score(self, start: int, answers: Sequence[Answers]) -> list[dict[str, Any]]:
        assert self._rater is not None
        places = [(offset, index) for offset, texts in enumerate(answers) for index in texts.usable]
        scores = sampling.score_texts(
            self._rater,
            [answers[offset].prompt for offset, _ in places],
            [answers[offset].responses[index] for offset, index in places],
            finished=[answers[offset].finished[index] for offset, index in places],
            names=[self._place(start + offset) for offset, _ in places],
        )
        ratings: list[list[float | None]] = [[None] * len(texts.responses) for texts in answers]
        for (offset, index), score in zip(places, scores, strict=True):
            ratings[offset][index] = float(score)
        return [{"ratings": some} for some in ratings]

    def _place(self, index: int) -> str:
        return self._prompts[index].place or f"prompt {index}"


def shown_comparisons(texts: Answers, index: int, config: CollectSettings) -> list[Comparison]:
    """What is asked about the responses to prompt ``index``."""
    generator = np.random.default_rng([config.seed, COMPARISONS, index])
    return comparisons_of(texts, generator, config.comparisons_per_prompt)
