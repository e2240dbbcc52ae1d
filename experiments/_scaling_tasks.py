"""What a ladder of model sizes is measured on: rated film reviews, or summaries; each with its RLHF."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from experiments._hindsight import asked_prompts
from experiments._hindsight_reviews import ReviewsTask
from experiments._hindsight_summaries import Summaries, SummariesTask
from experiments._hindsight_tasks import Measured, Task
from experiments._model_sizes import model_of_size
from experiments._sentiment import Study
from experiments._sentiment_rlhf import PPO, RLHF, train_ppo, train_reward
from experiments._stages import Report, Stages
from experiments.assets.prompts import Prompt
from jaxalign.data import Example, FeedbackPrompts
from jaxalign.errors import InputError

__all__ = ["ReviewsLadder", "Rung", "SummariesLadder"]

Params = Any


class Rung(Protocol):
    """One size: its task, its score, its RLHF."""

    @property
    def task(self) -> Task: ...
    @property
    def score(self) -> str:
        """What the score is, in words."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What decides its RLHF, beside the task's inputs and the seed."""
        ...

    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        """ "score", one value a held-out item, and what else there is."""
        ...

    def rlhf(self, *, seed: int, report: Report) -> Params:
        """The policy of PPO against a reward model of the task's records."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReviewsLadder:
    """Controlled sentiment: every size learns from its own rated samples."""

    study: Study
    """Everything but the model. ``sft_steps`` on reviews are all the training that a random model has before."""

    def rung(self, size: str, stages: Stages, text_length: int) -> Rung:
        """Prepare a size: its start model, samples and reward model."""
        model = model_of_size(size, stages, self.study.seed)
        return _ReviewsRung(ReviewsTask.load(replace(self.study, model=model), stages, text_length))


@dataclass
class _ReviewsRung:
    task: ReviewsTask
    score: str = "judge's P(positive) of the continuation"

    @property
    def inputs(self) -> Mapping[str, Any]:
        return self.task.study.rlhf.inputs | {"frozen_layers": self.task.study.frozen_layers}

    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        found = self.task.rated(params, prompts, seed=seed, report=report)
        return {"score": found["judge"], "true reward": found["reward"]}

    def rlhf(self, *, seed: int, report: Report) -> Params:
        return self.task.rlhf(seed=seed, report=report)


@dataclass(frozen=True, kw_only=True)
class SummariesLadder:
    """Comparisons by people, the same for every size; the score is ROUGE-L against the reference."""

    task: Summaries = field(default_factory=Summaries)
    """Everything but the model."""
    rlhf: RLHF = field(default_factory=RLHF)
    """Reward modelling and PPO; ``seeds_at`` is the KL it is held at."""
    frozen_layers: int = 0
    """Lowest layers that stay as they are."""
    max_length: int = 1024
    """Comparisons with a longer prompt and answers teach the reward model nothing; prompts that leave no room for a
    summary are not sampled from."""

    def rung(self, size: str, stages: Stages, text_length: int) -> Rung:
        """Prepare a size."""
        model = model_of_size(size, stages, self.task.seed)
        return _SummariesRung(SummariesTask(replace(self.task, model=model), stages, text_length), self)


@dataclass(frozen=True)
class _Numbers:
    """What ``train_reward`` and ``train_ppo`` read of a study."""

    rlhf: RLHF
    frozen_layers: int
    max_new_tokens: int
    sampling_batch: int
    seed: int
    temperature: float = 1.0


@dataclass
class _SummariesRung:
    task: SummariesTask
    ladder: SummariesLadder
    score: str = "ROUGE-L (F, x 100) of the likeliest summary"

    @property
    def inputs(self) -> Mapping[str, Any]:
        ladder = self.ladder
        return ladder.rlhf.inputs | {"frozen_layers": ladder.frozen_layers, "max_length": ladder.max_length}

    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        found = self.task.measure(params, prompts, seed=seed, report=report, details=False)
        return {"score": found["score"]}

    def rlhf(self, *, seed: int, report: Report) -> Params:
        task, settings = self.task, self.task.settings
        numbers = _Numbers(
            self.ladder.rlhf, self.ladder.frozen_layers, settings.max_new_tokens, settings.sampling_batch, seed
        )
        examples, prompts = self._comparisons()
        reward, _ = train_reward(task.config, task.start, examples, task.text[:256], numbers, report)
        target = self.ladder.rlhf.seeds_at
        return train_ppo(
            task.config, task.start, prompts, reward, PPO("learned", target), numbers, task.tokenizer,
            seed=seed, report=report,
        )[0]  # fmt: skip

    def _comparisons(self) -> tuple[list[Example], list[Prompt]]:
        """Records as the reward model reads them, after neutral words, and what PPO samples from: the same prompts."""
        task = self.task
        asked = asked_prompts(task.tokenizer, None, task.templates, task.kind)
        room = self.ladder.max_length - task.settings.max_new_tokens
        examples, prompts = [], {}
        for index, record in enumerate(task.records):
            try:
                example = asked.comparison(record, record_id=index)
            except InputError:
                continue  # ties, and the two rows of HH without an answer
            ids = tuple(example.tokens[example.branch == 0].tolist())
            if len(example.tokens) <= self.ladder.max_length:
                examples.append(example)
            if len(ids) <= room:
                prompts[ids] = Prompt(ids, "", task.tokenizer.decode(ids))
        if len(examples) < 2 or not prompts:
            raise InputError(f"--ladder.max-length: {len(examples)} comparisons and {len(prompts)} prompts fit into it")
        return examples, list(prompts.values())
