"""What every run of the sentiment study starts from: reviews, raters, the start model, preferences, a reward model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments._command import FirstBatch
from experiments._sentiment import Raters, Study, preference_examples, sample
from experiments._sentiment_rlhf import load_reward, save_reward, train_reward
from experiments._sentiment_training import demonstrations, fine_tune
from experiments._stages import ARRAYS, JSON, TREE, Stages, digest
from experiments.assets.prompts import Prompt, prefix_prompts
from jaxalign import models, recipes, sampling
from jaxalign.data import Example
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.training import fingerprint

__all__ = [
    "PREFERENCES",
    "Assets",
    "first_batch",
    "load_model",
    "load_reviews",
    "other_preferences",
    "prepare",
    "reward_inputs",
]

PREFERENCES = "preferences"
"""The stage that samples the start model and rates the samples."""

Params = Any


@dataclass(frozen=True)
class Assets:
    """The study up to its first training run."""

    config: ModelConfig
    base: Params
    """The model as it is published."""
    start: Params
    """The model that every method starts from, and is held to: ``base`` after supervised fine-tuning on reviews."""
    tokenizer: Any
    raters: Raters
    accuracy: dict[str, dict[str, float]]
    """Of the raters, held out."""
    sft_texts: list[str]
    """Reviews that the start model was fine-tuned on."""
    training: list[Prompt]
    held_out: list[Prompt]
    examples: list[Example]
    """A training prefix each, with all the pairs of its samples."""
    more_examples: list[Example]
    """Those of further prefixes, for the reward model alone."""
    demonstrations: list[Example]
    """Windows of reviews, on which the reward model's mean is 0."""
    reward: RewardModel | None
    """None = the study has no RLHF."""
    calibration: dict[str, Any] | None
    """Of the reward model, held out."""
    inputs: dict[str, Any]
    """What decides all of this and the training runs: for the keys of later stages."""
    sampled: dict[str, Any]
    """The part of it that decides the samples of the start model."""


def prepare(study: Study, stages: Stages) -> Assets:
    """Compute what is not kept yet.

    Raises:
      InputError: more prefixes asked for than there are.
    """
    reviews, raters, accuracy = _raters(study, stages)
    config, base, tokenizer = load_model(study.model)
    texts = reviews.prompts.texts
    if study.reward != "packaged":  # a foreign reward leaves its part of the reviews unused
        texts += reviews.reward.texts
    prompts = prefix_prompts(tokenizer, texts, study.seed, chat=study.chat, lead=study.lead)
    extra = study.rlhf.reward_extra_prompts if study.rlhf.targets else 0
    needed = study.prompts + study.held_out
    if len(prompts) < needed + extra:
        raise InputError(
            f"--prompts: {study.prompts} + {study.held_out} held out"
            + (f" + {extra} for the reward model" if extra else "")
            + f", but there are {len(prompts)} prefixes"
        )
    training = prompts[: study.prompts]
    weights = sorted(fingerprint(base).items())  # a local folder of the same name may hold other weights
    source = {"reviews": digest(texts), "weights": digest(weights)}
    inputs: dict[str, Any] = {"study": _study_inputs(study) | study.optimizer_inputs, **source}
    sampled: dict[str, Any] = {"study": _study_inputs(study, without=TRAINING), **source}
    start = base
    if study.sft_steps:
        start = stages.trained(
            "start-model",
            sampled | {"sft": digest(reviews.sft.texts)},
            lambda report, directory: fine_tune(
                config, base, tokenizer, reviews.sft.texts, study, report, study.scale.kept(directory)
            ),
            *TREE,
        )
    examples = _preferences(stages, sampled, config, start, tokenizer, training, raters, study)
    more: list[Example] = []
    windows: list[Example] = []
    reward, calibration = None, None
    if study.rlhf.targets:
        windows = demonstrations(tokenizer, reviews.sft.texts[:256], study)
        if extra:
            more = _preferences(
                stages, sampled | {"prefixes": extra}, config, start, tokenizer, prompts[needed : needed + extra],
                raters, study, name="more-preferences", seed=study.seed + 2,
            )  # fmt: skip

        def reward_model(report: Any, directory: Path) -> tuple[RewardModel, dict[str, Any]]:
            model, found = train_reward(
                config, start, [*more, *examples], windows, study, report, directory=study.rlhf.scale.kept(directory)
            )
            return model, dataclasses.asdict(found)

        reward, calibration = stages.trained(
            "reward-model",
            sampled | {"rlhf": reward_inputs(study), "sft": digest(reviews.sft.texts[:256])},
            reward_model,
            lambda folder, found: save_reward(folder, found, tokenizer),
            load_reward,
        )
    return Assets(
        config=config,
        base=base,
        start=start,
        tokenizer=tokenizer,
        raters=raters,
        accuracy=accuracy,
        sft_texts=reviews.sft.texts,
        training=training,
        held_out=prompts[study.prompts : needed],
        examples=examples,
        more_examples=more,
        demonstrations=windows,
        reward=reward,
        calibration=calibration,
        inputs=inputs,
        sampled=sampled,
    )


# Fields that decide the runs, but not what is sampled from the start model.
TRAINING = ("frozen_layers", "steps", "prompts_per_step", "learning_rate", "warmup_steps", "measure_every")


def _study_inputs(study: Study, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """What decides a stage's result: the study without the lists of runs, so that adding one keeps the others.

    A model or reviews on this disk are known by their content alone (``prepare``), wherever they lie.
    """
    runs = (
        "dpo_betas", "dpo_seeds", "dpo_seeds_at", "preferred_ft_seeds", "unlikelihood_alphas", "unlikelihood_seeds",
        "unlikelihood_seeds_at",
    )  # fmt: skip
    apart = (*runs, "compare_at", "rlhf", "sweep", "ablations", "scale", "optimizer", *without)
    values = {name: value for name, value in dataclasses.asdict(study).items() if name not in apart}
    return values | study.scale.inputs | {name: "local" for name in ("model", "reviews") if Path(values[name]).exists()}


def reward_inputs(study: Study) -> dict[str, Any]:
    """What decides the reward model, beside the samples it learns from."""
    values = {name: value for name, value in study.rlhf.inputs.items() if name.startswith("reward_")}
    return values | study.rlhf.scale.inputs | {"frozen": study.frozen_layers}


def load_reviews(study: Study) -> Any:
    """Reviews in four parts, packaged or a hub's."""
    if study.reviews == "packaged":
        from experiments.assets import movie_reviews

        return movie_reviews.load_movie_reviews(study.seed)
    from experiments.assets import hub

    return hub.load_reviews(study.reviews, study.seed)


def _raters(study: Study, stages: Stages) -> tuple[Any, Raters, dict[str, dict[str, float]]]:
    """Reviews in four parts, the reward and the judge fitted on disjoint ones, and their held-out accuracy."""
    from experiments.assets import sentiment

    reviews = load_reviews(study)
    reward: Any
    if study.reward == "packaged":
        reward = sentiment.fit_or_load(sentiment.TfidfReward, reviews.reward, reviews.reward_sentences, stages)
    else:
        from experiments.assets import hub

        reward = hub.SentimentClassifier(study.reward)
    judge = sentiment.fit_or_load(sentiment.CharacterJudge, reviews.judge, reviews.judge_sentences, stages)
    data_digest = digest(reviews.prompts.texts, reviews.prompts.labels, reviews.held_out_sentences.texts)
    accuracy = stages.stage(
        "rater-accuracy",
        {"raters": [reward.name, judge.name], "data": data_digest, "fitted": digest(reviews.reward.texts)},
        lambda report: {
            rater.name: sentiment.accuracies(rater, reviews.prompts, reviews.held_out_sentences)
            for rater in (reward, judge)
        },
        *JSON,
    )
    return reviews, Raters(reward=reward, judge=judge.probability), accuracy


def load_model(name: str) -> tuple[Any, Any, Any]:
    """Config, parameters and tokenizer of a packaged model, a folder or a hub id."""
    if name == "smollm2":
        from experiments.assets import smollm2

        return smollm2.load()
    if name == "glassllm":
        from experiments.assets import glassllm

        return glassllm.load()
    config, params = models.load_pretrained(name, dtype="float32")
    return config, params, recipes.load_tokenizer(name)


def _preferences(
    stages: Stages,
    known: dict[str, Any],
    config: Any,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    raters: Raters,
    study: Study,
    *,
    name: str = PREFERENCES,
    seed: int | None = None,
) -> list[Any]:
    """Samples of prefixes, scored and paired."""
    seed = study.seed if seed is None else seed

    def compute(report: Any) -> dict[str, Any]:
        samples, texts = sample(
            config, params, tokenizer, prompts, study, each=study.samples_per_prompt, seed=seed, report=report
        )
        openings = [prompt.opening for prompt in prompts for _ in range(study.samples_per_prompt)]
        rewards = sampling.score_texts(raters.reward, openings, texts)
        return {
            "tokens": samples.tokens,
            "mask": samples.mask,
            "log_probs": samples.log_probs,
            "finished": samples.finished,
            "rewards": rewards,
        }

    kept = stages.stage(name, known, compute, *ARRAYS)
    rewards = kept.pop("rewards")
    return preference_examples(prompts, sampling.Samples(**kept).responses(), rewards)


def other_preferences(study: Study, stages: Stages, assets: Assets) -> list[Example]:
    """The training prefixes with the pairs of another model's samples, as this model's tokens."""
    tokenizer = assets.tokenizer

    def compute(report: Any) -> dict[str, Any]:
        config, params, own = assets.config, assets.base, tokenizer
        if study.ablations.other_model != "base":
            config, params, own = load_model(study.ablations.other_model)
        prompts = [
            dataclasses.replace(prompt, ids=tuple(own.encode(prompt.text, add_special_tokens=False)))
            for prompt in assets.training
        ]
        each = study.samples_per_prompt
        samples, texts = sample(config, params, own, prompts, study, each=each, seed=study.seed + 3, report=report)
        openings = [prompt.opening for prompt in prompts for _ in range(each)]
        responses = []
        for text, finished in zip(texts, np.asarray(samples.finished).tolist(), strict=True):
            ids = tokenizer.encode(text, add_special_tokens=False)[: study.max_new_tokens]
            responses.append([*ids, tokenizer.eos_token_id] if finished or not ids else ids)
        rewards = sampling.score_texts(assets.raters.reward, openings, texts)
        return {"responses": responses, "rewards": rewards.tolist()}

    inputs = assets.sampled | {"model": study.ablations.other_model}
    found = stages.stage("other-preferences", inputs, compute, *JSON)
    return preference_examples(assets.training, found["responses"], np.asarray(found["rewards"]))


def first_batch(study: Study) -> FirstBatch:
    """The pairs of an update, sampled from the model as it is published: its fine-tuning would take minutes."""
    from experiments.assets import sentiment

    reviews = load_reviews(study)
    config, params, tokenizer = load_model(study.model)
    prompts = prefix_prompts(tokenizer, reviews.prompts.texts, study.seed, chat=study.chat, lead=study.lead)
    prompts = prompts[: study.prompts_per_step]
    each = study.samples_per_prompt
    samples, texts = sample(
        config, params, tokenizer, prompts, study, each=each, seed=study.seed, report=lambda done, total, note="": None
    )
    rater: Any = sentiment.TfidfReward.fit(reviews.reward.take(1000), reviews.reward_sentences.take(1000))
    rewards = sampling.score_texts(rater, [prompt.opening for prompt in prompts for _ in range(each)], texts)
    note = (
        f"{len(prompts)} prefixes with {each} samples each, all ordered pairs of them"
        + (", sampled before the fine-tuning on reviews" if study.sft_steps else "")
        + "; ordered by a reward fitted on 1,000 reviews alone"
    )
    return FirstBatch(preference_examples(prompts, samples.responses(), rewards), tokenizer, note)
