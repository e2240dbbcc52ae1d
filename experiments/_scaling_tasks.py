"""What a ladder of model sizes is measured on: rated film reviews, or summaries; each with its RLHF."""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from experiments._hindsight import RLHFRuns
from experiments._hindsight_reviews import ReviewsTask
from experiments._hindsight_rlhf import RLHFTraining, rlhf_on_comparisons
from experiments._hindsight_summaries import Summaries, SummariesTask
from experiments._hindsight_tasks import Measured, Task
from experiments._model_sizes import model_of_size
from experiments._sentiment import Study
from experiments._stages import Report, Stages
from jaxalign.data import FeedbackPrompts

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
    def rlhf(self) -> RLHFRuns: ...
    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        """ "score", one value a held-out item, and what else there is."""
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
    def rlhf(self) -> RLHFRuns:
        return self.task.rlhf

    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        found = self.task.rated(params, prompts, seed=seed, report=report)
        return {"score": found["judge"], "true reward": found["reward"]}


@dataclass(frozen=True, kw_only=True)
class SummariesLadder:
    """Comparisons by people, the same for every size; the score is ROUGE-L against the reference."""

    task: Summaries = field(default_factory=Summaries)
    """Everything but the model."""
    rlhf: RLHFTraining = field(default_factory=RLHFTraining)
    """Reward modelling and PPO."""
    frozen_layers: int = 0
    """Lowest layers that stay as they are."""
    max_length: int = 1024
    """Comparisons with a longer prompt and answers teach the reward model nothing; prompts that leave no room for a
    summary are not sampled from."""

    def rung(self, size: str, stages: Stages, text_length: int) -> Rung:
        """Prepare a size."""
        model = model_of_size(size, stages, self.task.seed)
        task = SummariesTask(replace(self.task, model=model), stages, text_length)
        runs = rlhf_on_comparisons(task, self.rlhf, self.frozen_layers, self.max_length)
        return _SummariesRung(task, runs)


@dataclass
class _SummariesRung:
    task: SummariesTask
    rlhf: RLHFRuns
    score: str = "ROUGE-L (F, x 100) of the likeliest summary"

    def measure(self, params: Params, prompts: FeedbackPrompts | None, *, seed: int, report: Report) -> Measured:
        found = self.task.measure(params, prompts, seed=seed, report=report, details=False)
        return {"score": found["score"]}
