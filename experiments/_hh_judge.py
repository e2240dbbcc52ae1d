"""Who says which of two answers is better, and the verdicts on every answer that was sampled."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments._hh_data import Dialogue
from experiments._stages import Report, Stages, digest
from jaxalign.errors import InputError, did_you_mean
from jaxalign.evaluation import JudgedPair
from jaxalign.evaluation.judges import (
    EndpointConfig,
    Item,
    Judge,
    LikelihoodJudge,
    OpenAIJudge,
    RewardJudge,
    VerdictCache,
    compare,
    load_prompts,
)

__all__ = ["CHOSEN", "Answers", "JudgeSettings", "SeededPair", "check_judge", "judge_answers", "make_judge"]

CHOSEN = "the chosen answer"


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The judge of a study."""

    kind: Literal["sentiment", "reward", "likelihood", "endpoint"]
    """"sentiment": a model of character n-grams, fitted on packaged film reviews that nothing else reads. "reward": a
    reward model or function. "likelihood": a local model asked for the letter. "endpoint": an OpenAI-compatible one."""
    model: str = ""
    """Of "reward" and "likelihood": a folder or hub id (of a reward also package.module:function)."""
    prompts: str = "dialogue"
    """What a model is asked: a built-in name or a TOML file."""
    axis: str = "helpful"
    """What about; a question of ``prompts``, and the name in tables."""
    endpoint: EndpointConfig = field(default_factory=lambda: EndpointConfig(model="gpt-4-0314"))
    """Of "endpoint"; the default is the paper's."""

    def __post_init__(self) -> None:
        if bool(self.model) != (self.kind in ("reward", "likelihood")):
            raise InputError(f"--judge.model: {self.kind} needs {'one' if not self.model else 'none'}")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a method says at one temperature: a text a held-out dialogue."""

    method: str
    seed: int
    temperature: float | None = None
    step: int | None = None
    """Of training, where the answers belong to its curve."""
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class SeededPair:
    """A verdict, and the training seed of the answer that it is on."""

    seed: int
    pair: JudgedPair

    def to_json(self) -> dict[str, Any]:
        """A line that ``jaxalign evaluate --verdicts`` reads."""
        return {"seed": self.seed, **dataclasses.asdict(self.pair)}


def check_judge(settings: JudgeSettings) -> None:
    """Say before training what would be missing after it. An endpoint is asked nothing, and no weights are read, which
    would lie on the devices beside what is trained.

    Raises:
      InputError: no client or key for the endpoint, no such model, prompts or question.
    """
    if settings.kind in ("likelihood", "endpoint"):
        asked = load_prompts(settings.prompts).questions
        if settings.axis not in asked:
            known = did_you_mean(settings.axis, asked)
            raise InputError(f"--judge.axis: {settings.prompts} has no question {settings.axis!r}; {known}")
    if settings.kind == "endpoint":
        OpenAIJudge(settings.endpoint, settings.prompts).check()
    if settings.kind in ("likelihood", "reward"):
        from jaxalign import models, recipes

        if settings.kind == "reward" and ":" in settings.model and not Path(settings.model).is_dir():
            recipes.load_text_reward(settings.model, flag="--judge.model")  # a function
            return
        try:
            if settings.kind == "reward":
                models.load_labels(settings.model.partition("#")[0])
            else:
                models.load_config(settings.model)
                recipes.load_tokenizer(settings.model)
        except InputError as error:
            raise InputError(f"--judge.model: {error}") from error


def make_judge(settings: JudgeSettings, stages: Stages, seed: int) -> Judge:
    """The judge; a fitted one is kept under ``stages``. Raises ``InputError``."""
    if settings.kind == "sentiment":
        from experiments.assets import movie_reviews, sentiment

        reviews = movie_reviews.load_movie_reviews(seed)
        fitted = sentiment.fit_or_load(sentiment.CharacterJudge, reviews.judge, reviews.judge_sentences, stages)
        version = digest(reviews.judge.texts, reviews.judge_sentences.texts, fitted.settings)
        # The answer alone: the question is another review's, and the same on both sides.
        return RewardJudge(lambda prompts, texts: fitted.log_odds(texts), name=fitted.name, version=version)
    if settings.kind == "reward":
        from jaxalign import recipes

        reward = recipes.load_text_reward(settings.model, flag="--judge.model", truncation="keep_start")
        version = recipes.identity_of(reward) or ""
        return RewardJudge(reward, name=settings.model, version=version)
    if settings.kind == "likelihood":
        from jaxalign import models, recipes

        config, params = models.load_pretrained(settings.model, dtype="bfloat16")
        tokenizer = recipes.load_tokenizer(settings.model)
        return LikelihoodJudge(config, params, tokenizer, settings.prompts, name=settings.model)
    return OpenAIJudge(settings.endpoint, settings.prompts)


def judge_answers(
    judge: Judge, axis: str, dialogues: Sequence[Dialogue], answers: Sequence[Answers], cache: Path, report: Report
) -> list[SeededPair]:
    """Every answer against the chosen one of its dialogue, in an order drawn at random; no verdict is asked twice."""
    items = [
        Item(prompt=one.prompt.strip(), ours=text, theirs=one.chosen.strip(), axis=axis)
        for own in answers
        for one, text in zip(dialogues, own.texts, strict=True)
    ]
    with VerdictCache(cache) as verdicts:
        judged = compare(
            judge, items, seed=0, cache=verdicts, on_progress=lambda done, total: report(done, total, "verdicts")
        )
    whose = [own for own in answers for _ in dialogues]
    return [
        SeededPair(
            seed=own.seed,
            pair=JudgedPair(
                prompt=one.item.prompt, ours=one.item.ours, theirs=one.item.theirs, outcome=one.outcome, axis=axis,
                method=own.method, against=CHOSEN, judge=judge.name, temperature=own.temperature, step=own.step,
            ),
        )
        for own, one in zip(whose, judged, strict=True)
    ]  # fmt: skip
