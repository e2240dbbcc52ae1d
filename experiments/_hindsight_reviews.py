"""Controlled sentiment as feedback: a model's own reviews, rated by a classifier (Algorithm 1), good ones asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments._hindsight import RLHFRuns
from experiments._hindsight_tasks import Axis, Measured, Published, forgetting, text_windows
from experiments._sentiment import Study
from experiments._sentiment_rlhf import PPO, train_ppo
from experiments._sentiment_start import Assets, prepare
from experiments._stages import Report, Stages
from experiments.assets.prompts import Prompt
from jaxalign import data, evaluation, recipes, sampling
from jaxalign.data import FeedbackKind, FeedbackPrompts, Polarity

__all__ = ["TEMPLATES", "ReviewsTask"]

Params = Any
_PAPER = Published(source="")
TEMPLATES = str(Path(__file__).parent / "templates" / "reviews.toml")
PRETRAINING_REVIEWS = 1000  # whole reviews, cut into windows
REQUEST = "Write a short film review."
LEAD = f"{REQUEST}\n\nA review:\n"
"""What an opening stands behind where nobody speaks of quality: the request, and the templates' neutral words."""


@dataclass
class ReviewsTask:
    """The sentiment study's start model, prefixes and raters; an output is a whole review, its opening given."""

    study: Study
    assets: Assets
    text_length: int
    templates: str = TEMPLATES
    kind: FeedbackKind = "answer"
    score: str = "true reward of the continuation (log-odds of positive) after the words of a good review"
    decimals: int = 2
    unit: str = "true reward, nats"
    paper: Published = _PAPER
    axes: tuple[Axis, ...] = ()
    items: tuple[str, ...] = ()

    @classmethod
    def load(cls, study: Study, stages: Stages, text_length: int) -> "ReviewsTask":
        """Prepare, or read what was prepared."""
        return cls(study, prepare(study, stages), text_length)

    def __post_init__(self) -> None:
        self.config, self.start, self.tokenizer = self.assets.config, self.assets.start, self.assets.tokenizer
        self.records = self._records()
        self.setting = f"{self.study.model}, {self.study.reviews} film reviews"
        texts = [" ".join(text.split()) for text in self.assets.sft_texts[:PRETRAINING_REVIEWS]]
        windows = text_windows(texts, self.tokenizer, self.text_length, held_out=min(64, len(texts) // 4))
        self.text, self._held_text = windows.train, windows.held_out
        self.inputs = self.assets.sampled | {"pretraining": data.fingerprint(self.text)}

    def _records(self) -> list[dict[str, Any]]:
        """Each prefix with the best and the worst of its samples, and their rewards."""
        found = []
        for example in self.assets.examples:
            opening = self.assets.training[example.record_id].opening
            said = [
                self.tokenizer.decode(example.tokens[example.branch == slot + 1].tolist(), skip_special_tokens=True)
                for slot in range(example.sequences)
            ]
            ended = [
                int(example.tokens[example.branch == slot + 1][-1]) == self.tokenizer.eos_token_id
                for slot in range(example.sequences)
            ]
            scores = sampling.score_texts(self.assets.raters.reward, [opening] * len(said), said)
            chosen = [int(np.argmax(scores)), int(np.argmin(scores))]
            found.append({
                "prompt": REQUEST,
                "responses": [opening + said[slot] for slot in chosen],
                "ratings": [float(scores[slot]) for slot in chosen],
                "finished": [ended[slot] for slot in chosen],  # most are cut at a length
            })  # fmt: skip
        return found

    def measure(
        self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report, details: bool = True
    ) -> Measured:
        held = self.assets.held_out
        plain = [list(prompt.ids) for prompt in held]
        asked = plain if prompts is None else self._asked(prompts, "positive", held)
        ids, texts = self._sample(params, asked, seed, report)
        found = {
            "score": self._by_prefix(self._rated("reward", texts)),
            "judge": self._by_prefix(self._rated("judge", texts)),
        }
        if details:
            found["log-perplexity under the start model"] = self._by_prefix(self._perplexity(plain, ids))
            found["plain text, nats a token"] = forgetting(self.config, params, self._held_text)
        if prompts is not None and prompts.writer.form.markers == "feedback":
            _, bad = self._sample(params, self._asked(prompts, "negative", held), seed, report)
            found["score, bad words"] = self._by_prefix(self._rated("reward", bad))
            found["copied, unseen"] = self._by_prefix(evaluation.copied_share(texts, bad, n=3))
            found |= self._bettered(params, prompts, held, bad, seed, report)
        return found

    def rated(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        """What the two raters say of a good review, and nothing else: one sampling."""
        held = self.assets.held_out
        asked = [list(prompt.ids) for prompt in held] if prompts is None else self._asked(prompts, "positive", held)
        _, texts = self._sample(params, asked, seed, report)
        return {name: self._by_prefix(self._rated(name, texts)) for name in ("reward", "judge")}

    @property
    def rlhf(self) -> RLHFRuns:
        """PPO against the reward model that was learnt of the same samples (and more of them)."""
        settings = self.study.rlhf

        def policy(*, seed: int, report: Report, directory: Path) -> Params:
            assert self.assets.reward is not None
            return train_ppo(
                self.config, self.start, self.assets.training, self.assets.reward, PPO("learned", settings.seeds_at),
                self.study, self.tokenizer, seed=self.study.seed + seed, report=report,
                directory=settings.scale.kept(directory),
            )[0]  # fmt: skip

        inputs = settings.inputs | {"frozen_layers": self.study.frozen_layers}
        return RLHFRuns(inputs, policy, settings.in_words(settings.seeds_at))

    def _asked(self, prompts: FeedbackPrompts, polarity: Polarity, held: Sequence[Prompt]) -> list[list[int]]:
        before = prompts.tokens(REQUEST, polarity)
        return [[*before, *self._opening(prompt)] for prompt in held]

    def _opening(self, prompt: Prompt) -> list[int]:
        """The opening behind a marker, on a line of its own."""
        line, lead = (self.tokenizer.encode(text, add_special_tokens=False) for text in ("\n", LEAD))
        return [*line, *prompt.ids[len(lead) :]]

    def _bettered(
        self, params: Params, prompts: FeedbackPrompts, held: Sequence[Prompt], first: Sequence[str], seed: int,
        report: Report,
    ) -> Measured:  # fmt: skip
        """The model's own bad review given back, a better one asked for: its score, and how much of it is copied."""
        each = self.study.held_out_samples
        openings = [held[index // each].opening for index in range(len(first))]
        asked = [
            [*prompts.better(REQUEST, opening + text), *self._opening(held[index // each])]
            for index, (opening, text) in enumerate(zip(openings, first, strict=True))
        ]
        _, texts = self._sample(params, asked, seed, report, each=1, draw=1)
        return {
            "score, bettered": self._by_prefix(self._rated("reward", texts)),
            "copied": self._by_prefix(evaluation.copied_share(texts, first, n=3)),
        }

    def _sample(
        self,
        params: Params,
        asked: Sequence[Sequence[int]],
        seed: int,
        report: Report,
        *,
        each: int | None = None,
        draw: int = 0,
    ) -> tuple[list[list[int]], list[str]]:
        end = self.tokenizer.eos_token_id
        samples = sampling.generate(
            self.config,
            params,
            asked,
            jax.random.fold_in(jax.random.key(seed), draw),
            max_new_tokens=self.study.max_new_tokens,
            temperature=self.study.temperature,
            stop_tokens=[end],
            samples_per_prompt=self.study.held_out_samples if each is None else each,
            batch_size=self.study.sampling_batch,
            on_progress=lambda done, total: report(done, total, "samples"),
        )
        ids = [list(map(int, row)) for row in samples.responses()]
        # A model that goes on to another review, as chains do, has ended this one.
        ids = [self._until_line(row) for row in ids]
        return ids, [self.tokenizer.decode(row, skip_special_tokens=True).split("\n")[0] for row in ids]

    def _until_line(self, ids: list[int]) -> list[int]:
        """Up to the first token with a line break, and at least one."""
        ends = (place for place, token in enumerate(ids) if "\n" in self.tokenizer.decode([token]))
        return ids[: max(next(ends, len(ids)), 1)]

    def _rated(self, name: str, texts: Sequence[str]) -> np.ndarray:
        each = len(texts) // len(self.assets.held_out)
        openings = [self.assets.held_out[index // each].opening for index in range(len(texts))]
        return sampling.score_texts(getattr(self.assets.raters, name), openings, texts)

    def _perplexity(self, plain: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Nats a token of the samples behind their openings, under the start model."""
        each = len(ids) // len(plain)
        rows = [data.answers_example(plain[index // each], [own], record_id=index) for index, own in enumerate(ids)]
        scored = recipes.example_log_probs(self.config, self.start, rows, batch_size=64)
        return np.array([-row.mean() for row in scored])

    def _by_prefix(self, values: Any) -> list[float]:
        array = np.asarray(values, float)
        return [float(value) for value in array.reshape(len(self.assets.held_out), -1).mean(axis=1)]
