"""Training runs of the TL;DR study, and what a model writes: each a pure function of settings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments._stages import JSON, Report
from experiments._tldr import Post, Run, Study, ask, demonstration
from jaxalign import data, evaluation, models, recipes, sampling
from jaxalign.data import Example, Prompt
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes import FitConfig, Objective, PPOFitConfig, PreferenceObjective, RewardObjective
from jaxalign.training import OptimizerConfig

__all__ = [
    "demonstrations",
    "fine_tune",
    "learn_to_read",
    "load_reward",
    "preferences",
    "save_reward",
    "summarise",
    "train_ppo",
    "train_preferences",
    "train_reward",
    "write_and_score",
]  # fmt: skip

Params = Any
Summary = dict[str, Any]
"""``text``, and ``finished``: whether it ended by itself."""


def demonstrations(posts: Sequence[Post], tokenizer: Any, study: Study) -> list[Example]:
    """References behind their prompts."""
    rows = [demonstration(post) for post in posts]
    return data.build_examples(rows, tokenizer, kind="completion", truncation=study.truncation)[0]


def preferences(records: Sequence[Any], tokenizer: Any, study: Study) -> list[Example]:
    """Rated summaries as pairs: all answers to a prompt behind it, each computed once."""
    return data.build_examples(records, tokenizer, kind="ranked", truncation=study.truncation)[0]


def learn_to_read(
    config: ModelConfig, params: Params, texts: Sequence[str], tokenizer: Any, study: Study, report: Report
) -> Params:
    """The model once it finds again, behind the prompt, what stands before it; every token is learnt.

    Raises ``InputError``: no article is longer than a passage may be.
    """
    random = np.random.default_rng(study.seed)
    low, high = study.reading_words
    articles = [words for text in texts if len(words := text.split()) > high]
    if not articles:
        raise InputError(f"--reading-words: no article of the demonstrations has more than {high} words")
    rows = []
    for article in random.integers(0, len(articles), study.reading.steps * study.reading.batch):
        size = int(random.integers(low, high + 1))
        start = int(random.integers(0, len(articles[article]) - size))
        passage = " ".join(articles[article][start : start + size])
        rows.append({"text": f"{ask(passage)} {passage}"})
    truncation = data.Truncation(max_length=study.max_length)
    examples = data.build_examples(rows, tokenizer, kind="text", truncation=truncation)[0]
    return _fit(
        config, params, examples, recipes.likelihood_objective, study.reading, study, seed=study.seed, report=report
    )


def fine_tune(
    config: ModelConfig, params: Params, examples: Sequence[Example], study: Study, report: Report, directory: Path
) -> Params:
    """The SFT model."""
    return _fit(
        config, params, examples, recipes.likelihood_objective, study.sft, study,
        seed=study.seed, report=report, directory=directory,
    )  # fmt: skip


def train_preferences(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    objective: PreferenceObjective,
    run: Run,
    study: Study,
    *,
    seed: int,
    report: Report,
    directory: Path,
) -> Params:
    """One run of DPO or Preferred-FT."""
    return _fit(
        config, params, examples, lambda model_config: recipes.preference_objective(model_config, objective), run,
        study, seed=seed, report=report, directory=directory,
    )  # fmt: skip


def train_reward(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    references: Sequence[Example],
    study: Study,
    report: Report,
    directory: Path,
) -> tuple[RewardModel, evaluation.Calibration]:
    """A reward model that starts as the SFT model, its mean on ``references`` 0, and what it knows of an eighth of the
    preferences, held out: the model of best accuracy on them is kept."""
    held = max(1, len(examples) // 8)
    scored, tree = models.add_score_head(config, params, jax.random.key(study.seed))
    result = recipes.fit(
        scored,
        tree,
        examples[:-held],
        lambda model_config: recipes.reward_objective(model_config, RewardObjective()),
        _settings(study.reward, study, study.seed, eval_every=max(1, study.reward.steps // 6)),
        eval_examples=examples[-held:],
        keep_best="eval/rewards/accuracy",
        directory=study.scale.kept(directory),
        report=report,
    )
    _go_on(result.interrupted)
    margins = recipes.reward_model.pair_margins(result.config, result.params, examples[-held:])
    mean, _, _ = recipes.reward_model.moments(result.config, result.params, references)
    return RewardModel(result.config, result.params, mean), evaluation.calibration(margins)


def save_reward(folder: Path, found: tuple[RewardModel, Any], tokenizer: Any) -> None:
    """Into a stage's folder."""
    models.save_reward_model(folder / "model", found[0], tokenizer, measured_on="reference summaries")
    JSON.save(folder, found[1])


def load_reward(folder: Path) -> tuple[RewardModel, Any]:
    """What ``save_reward`` wrote."""
    return models.load_reward_model(folder / "model", dtype="float32"), JSON.load(folder)


def train_ppo(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Prompt],
    reward: RewardModel,
    tokenizer: Any,
    study: Study,
    *,
    seed: int,
    report: Report,
    directory: Path,
) -> Params:
    """One PPO run, with the reference the policy it starts from; the score lands on the token after the EOS."""
    run, scale = study.ppo, study.scale
    settings = PPOFitConfig(
        max_steps=run.updates,
        batch_size=run.episodes,
        ppo_epochs=run.ppo_epochs,
        minibatches=run.minibatches,
        accumulation=scale.accumulation,
        optimizer=OptimizerConfig(learning_rate=run.learning_rate, schedule="linear", epsilon=1e-5, clip_norm=1.0),
        max_new_tokens=study.max_new_tokens,
        temperature=run.temperature,
        sampling_batch=study.sampling_batch,
        kl_coefficient=run.kl_coefficient,
        score_at="after_eos",
        missing_eos_score=run.missing_eos_score,
        dtype=scale.dtype,
        remat=scale.remat,
        save_every=scale.save_every(run.updates),
        seed=seed,
    )
    result = recipes.fit_ppo(
        config, params, prompts, reward, settings,
        decode=tokenizer.decode, stop_tokens=_stop(tokenizer), report=report,
        directory=scale.kept(directory),
    )  # fmt: skip
    _go_on(result.interrupted)
    return result.params


def summarise(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    study: Study,
    *,
    temperature: float,
    seed: int,
    each: int = 1,
    report: Report,
) -> list[list[Summary]]:
    """What the model writes, ``each`` times for every prompt."""
    samples = _sample(config, params, tokenizer, prompts, study, temperature, seed, each, report)
    return _summaries(samples, tokenizer, each)


def write_and_score(
    config: ModelConfig,
    params: Params,
    reward: RewardModel,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    study: Study,
    *,
    temperature: float,
    seed: int,
    each: int,
    report: Report,
) -> list[list[Summary]]:
    """The same, each summary with its ``score`` by the reward model."""
    samples = _sample(config, params, tokenizer, prompts, study, temperature, seed, each, report)
    rows = [
        data.answers_example(prompts[index // each].tokens, [ids], record_id=index)
        for index, ids in enumerate(samples.responses())
    ]
    report(len(rows), len(rows), "scoring")
    scores = np.concatenate(recipes.example_scores(reward.config, reward.params, rows, batch_size=32))
    found = _summaries(samples, tokenizer, each)
    for index, score in enumerate(scores.tolist()):
        found[index // each][index % each]["score"] = score
    return found


def _sample(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    study: Study,
    temperature: float,
    seed: int,
    each: int,
    report: Report,
) -> sampling.Samples:
    return sampling.generate(
        config,
        params,
        [prompt.tokens for prompt in prompts],
        jax.random.key(seed),
        max_new_tokens=study.max_new_tokens,
        temperature=temperature,
        stop_tokens=_stop(tokenizer),
        samples_per_prompt=each,
        batch_size=study.sampling_batch,
        on_progress=lambda done, total: report(done, total, f"summaries at temperature {temperature:g}"),
    )


def _summaries(samples: sampling.Samples, tokenizer: Any, each: int) -> list[list[Summary]]:
    stop = set(_stop(tokenizer))
    finished = np.asarray(samples.finished).tolist()
    rows = [
        {"text": " ".join(tokenizer.decode([token for token in ids if token not in stop]).split()), "finished": whole}
        for ids, whole in zip(samples.responses(), finished, strict=True)
    ]
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def _stop(tokenizer: Any) -> list[int]:
    return [token for token in (tokenizer.eos_token_id,) if token is not None]


def _fit(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    make_objective: Callable[[ModelConfig], Objective],
    run: Run,
    study: Study,
    *,
    seed: int,
    report: Report,
    directory: Path | None = None,
) -> Params:
    kept = None if directory is None else study.scale.kept(directory)
    settings = _settings(run, study, seed)
    result = recipes.fit(config, params, examples, make_objective, settings, directory=kept, report=report)
    _go_on(result.interrupted)
    return result.params


def _settings(run: Run, study: Study, seed: int, *, eval_every: int = 0) -> FitConfig:
    return FitConfig(
        max_steps=run.steps,
        batch_size=run.batch,
        optimizer=run.optimizer_config(),
        eval_every=eval_every,
        seed=seed,
        dtype=study.scale.dtype,
        accumulation=study.scale.accumulation,
        remat=study.scale.remat,
        save_every=study.scale.save_every(run.steps),
    )


def _go_on(interrupted: bool) -> None:
    if interrupted:  # a stage that was stopped has no result to keep
        raise KeyboardInterrupt
