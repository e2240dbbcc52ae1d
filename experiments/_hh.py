"""The parts of the dialogue study: what is trained and sampled, each a pure function of settings."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments._hh_data import HUMAN, Dialogue
from experiments._hh_judge import JudgeSettings
from experiments._stages import Report
from jaxalign import data, evaluation, models, recipes, sampling
from jaxalign.data import Example
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig
from jaxalign.recipes import FitConfig, PreferenceObjective, RewardObjective
from jaxalign.training import OptimizerConfig

__all__ = ["Study", "Training", "answer", "best_answers", "examples", "prompt_ids", "train_dpo", "train_reward", "tune"]

Params = Any


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training run."""

    steps: int
    """Updates."""
    batch_size: int = 64
    """Dialogues in an update."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            optimizer="rmsprop", learning_rate=1e-6, warmup_steps=150, clip_norm=10.0
        )
    )
    """The optimizer; the default is the paper's."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The numbers of one preset."""

    model: str
    """"smollm2" or "glassllm" (packaged), or a model folder or hub id."""
    dialogues: str
    """"reviews" (packaged film reviews as dialogues), "hh-sample" (1,156 rows of Anthropic-HH, where they lie beside
    the checkout), or a file or hub id of rows of HH's schema."""
    held_out_dialogues: str | None = None
    """A file or hub id of the same schema; None = a part of ``dialogues``."""
    held_out_split: str = "test"
    """Its split; of a file "train"."""
    train: int | None = None
    """Dialogues to train on; None = all."""
    prompts: int = 256
    """Single-turn prompts to answer."""
    judge: JudgeSettings
    """Who compares an answer with the chosen one."""
    tuning: Training
    """Preferred-FT: the chosen answers, from the base model."""
    dpo: Training
    """DPO, from Preferred-FT, which is its reference."""
    dpo_rate_chosen_on: float = 0.0
    """Share of ``prompts`` on which DPO's learning rate was chosen, which favours DPO: claims say so."""
    beta: float = 0.1
    """DPO's."""
    reward: Training
    """The reward model that Best-of-N picks by, from Preferred-FT, on the same preferences."""
    measure_every: int
    """Updates of DPO between points over training."""
    best_of: tuple[int, ...] = (1, 4, 16, 64, 128)
    """Best-of-N, nested: of the first N of the same samples of Preferred-FT, which is Best of 1."""
    shot_words: int = 60
    """Longest of the two dialogues that the base model is shown before the question, in words."""
    temperatures: tuple[float, ...] = (0.0, 0.25, 0.5, 0.7, 1.0)
    """Of sampling."""
    training_temperatures: tuple[float, ...] = (0.7, 1.0)
    """Of sampling over training."""
    claim_temperature: float = 0.7
    """Of which claims are made."""
    max_length: int = 512
    """Most tokens of a prompt with an answer."""
    max_prompt_length: int = 256
    """Most tokens of a prompt; a longer one loses its beginning."""
    max_new_tokens: int = 256
    """Longest answer that is sampled, in tokens."""
    sampling_batch: int = 256
    """Answers decoded together."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds: order, the reward model's head, samples."""
    seed: int = 0
    """Of the split."""
    show: int = 0
    """Prompts whose answers stand in the report (HH's text is offensive)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""
    accumulation: int = 1
    """Micro-batches of an update."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again."""
    checkpoint_every: int | None = None
    """Updates between checkpoints, by which a run that is killed goes on; None = a killed run begins again."""

    def __post_init__(self) -> None:
        if not self.best_of or self.best_of[0] != 1 or sorted(set(self.best_of)) != list(self.best_of):
            raise InputError(f"--best-of: {self.best_of} must rise from 1, which is Preferred-FT")
        if self.claim_temperature not in self.temperatures:
            raise InputError(f"--claim-temperature: {self.claim_temperature:g} is not one of --temperatures")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("--seeds: name at least one, each once")


def examples(
    study: Study, tokenizer: Any, dialogues: Sequence[Dialogue], kind: Literal["chosen", "preference"]
) -> list[Example]:
    """Dialogues as tokens: pairs, or the chosen answers alone."""
    limit = data.Truncation(max_length=study.max_length, max_prompt_length=study.max_prompt_length, prompt="keep_end")
    rows = [dataclasses.asdict(one) for one in dialogues]
    return data.build_examples(rows, tokenizer, kind=kind, truncation=limit)[0]


def tune(
    config: ModelConfig,
    params: Params,
    chosen: Sequence[Example],
    study: Study,
    seed: int,
    folder: Path,
    report: Report,
) -> Params:
    """Preferred-FT: maximum likelihood of the chosen answers."""
    settings = _fit_config(study, study.tuning, seed)
    return _fit(config, params, chosen, recipes.likelihood_objective, settings, folder, study, report=report).params


def train_dpo(
    config: ModelConfig,
    params: Params,
    pairs: Sequence[Example],
    study: Study,
    seed: int,
    folder: Path,
    measure: Callable[[Params], dict[str, list[str]]],
    report: Report,
) -> tuple[Params, dict[str, dict[str, list[str]]]]:
    """DPO from ``params``, its reference; the model, and what ``measure`` said of it by step (step 0 is ``params``).

    What was measured is written into ``folder`` at once: a run that goes on from a checkpoint does not measure again.
    """
    objective = PreferenceObjective(loss=("sigmoid",), beta=study.beta)
    measured = folder / "measured"
    measured.mkdir(parents=True, exist_ok=True)

    def evaluate(step: int, policy: Params) -> dict[str, float]:
        report(step, study.dpo.steps, "sampling")
        (measured / f"{step}.json").write_text(json.dumps(measure(policy)), encoding="utf-8")
        return {}

    settings = _fit_config(study, study.dpo, seed, eval_every=study.measure_every)
    result = _fit(
        config, params, pairs, lambda model: recipes.preference_objective(model, objective), settings, folder, study,
        cache_reference=True, evaluate=evaluate, report=report,
    )  # fmt: skip
    files = sorted(measured.glob("*.json"), key=lambda path: int(path.stem))
    return result.params, {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def train_reward(
    config: ModelConfig, params: Params, pairs: Sequence[Example], study: Study, seed: int, folder: Path, report: Report
) -> tuple[Params, dict[str, Any]]:
    """A Bradley-Terry reward model from ``params``: the best by accuracy on a sixteenth held out, and that accuracy."""
    held = max(1, min(512, len(pairs) // 16))
    scored, tree = models.add_score_head(config, params, jax.random.key(seed))
    settings = _fit_config(study, study.reward, seed, eval_every=max(1, study.reward.steps // 5))
    result = _fit(
        scored, tree, pairs[:-held], lambda model: recipes.reward_objective(model, RewardObjective()), settings, folder,
        study, eval_examples=pairs[-held:], keep_best="eval/rewards/accuracy", report=report,
    )  # fmt: skip
    margins = recipes.reward_model.pair_margins(result.config, result.params, pairs[-held:])
    return result.params, dataclasses.asdict(evaluation.calibration(margins))


def prompt_ids(
    study: Study, tokenizer: Any, dialogues: Sequence[Dialogue], shots: Sequence[Dialogue] = ()
) -> list[list[int]]:
    """Prompts as tokens, behind other dialogues where some are shown."""
    before = "".join(one.prompt + one.chosen for one in shots)
    limit = data.Truncation(max_prompt_length=None if shots else study.max_prompt_length, prompt="keep_end")
    rows = [{"prompt": before + one.prompt} for one in dialogues]
    return [list(one.tokens) for one in data.build_prompts(rows, tokenizer, truncation=limit)[0]]


def answer(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    study: Study,
    *,
    seed: int,
    each: int = 1,
    stop: bool = False,
    report: Report | None = None,
) -> tuple[sampling.Samples, list[str]]:
    """Answers and their texts, prompt-major; ``stop`` where the human speaks next, for a model that knows no end."""
    ends = [token for token in (tokenizer.eos_token_id,) if token is not None]
    samples = sampling.generate(
        config.replace(compute_dtype=study.dtype),
        jax.tree.map(jnp.asarray, params),
        prompts,
        jax.random.key(seed),
        max_new_tokens=study.max_new_tokens,
        temperature=temperature,
        stop_tokens=ends,
        stop_strings=(HUMAN,) if stop else (),
        decode=tokenizer.decode if stop else None,
        samples_per_prompt=each,
        batch_size=study.sampling_batch,
        on_progress=None if report is None else lambda done, total: report(done, total, f"samples at {temperature:g}"),
    )
    texts = [tokenizer.decode(ids[:-1] if ids[-1] in ends else ids) for ids in samples.responses()]
    return samples, [text.split(HUMAN)[0].strip() for text in texts]


def best_answers(
    config: ModelConfig,
    params: Params,
    reward: Params,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    study: Study,
    *,
    seed: int,
    report: Report,
) -> dict[str, list[str]]:
    """Best-of-N of ``params`` by the reward model, for every N: texts by N. Greedy samples are all the same."""
    each = study.best_of[-1] if temperature else 1
    samples, texts = answer(config, params, tokenizer, prompts, temperature, study, seed=seed, each=each, report=report)
    if each == 1:
        return {str(n): texts for n in study.best_of}
    rows = [
        data.answers_example(prompts[index // each], [ids], record_id=index)
        for index, ids in enumerate(samples.responses())
    ]
    scores = recipes.example_scores(
        config.replace(labels=1, compute_dtype=study.dtype), reward, rows, batch_size=study.sampling_batch
    )
    best = sampling.best_of_n(np.concatenate(scores).reshape(len(prompts), each))
    return {str(n): [texts[row * each + best[row, n - 1]] for row in range(len(prompts))] for n in study.best_of}


def _fit_config(study: Study, training: Training, seed: int, eval_every: int = 0) -> FitConfig:
    return FitConfig(
        max_steps=training.steps,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        accumulation=study.accumulation,
        dtype=study.dtype,
        remat=study.remat,
        seed=seed,
        save_every=study.checkpoint_every or training.steps,
        eval_every=eval_every,
    )


def _fit(
    config: ModelConfig, params: Params, rows: Sequence[Example], make: Any, settings: FitConfig, folder: Path,
    study: Study, **more: Any,
) -> recipes.FitResult:  # fmt: skip
    directory = None if study.checkpoint_every is None else folder
    result = recipes.fit(config, params, rows, make, settings, directory=directory, **more)
    if result.interrupted:  # a stage that was stopped has no result to keep
        raise KeyboardInterrupt
    return result
