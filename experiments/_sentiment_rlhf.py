"""The RLHF half of the sentiment study: a reward model of the preferences, and PPO against it or the truth."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments._hindsight import Scale
from experiments._stages import JSON, Report
from experiments.assets.prompts import Prompt
from jaxalign import data, evaluation, models, recipes
from jaxalign.data import Example
from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, RewardModel
from jaxalign.recipes import FitConfig, PPOFitConfig, RewardObjective
from jaxalign.sampling import TextReward
from jaxalign.training import OptimizerConfig

__all__ = ["PPO", "RLHF", "RewardAndPPO", "load_reward", "save_reward", "train_ppo", "train_reward"]

Params = Any


@dataclass(frozen=True, kw_only=True)
class RewardAndPPO:
    """The numbers of one run: reward modelling, then PPO, whatever KL it is held at."""

    reward_steps: int = 200
    """Updates of the reward model; the one of best held-out accuracy is kept."""
    reward_prompts_per_step: int = 32
    """Prefixes in an update of the reward model, each with all the pairs of its samples."""
    reward_learning_rate: float = 1e-3
    """Of Adam, linear to 0."""
    reward_held_out: float = 0.125
    """Share of the prefixes whose preferences the reward model is measured on instead of trained on."""
    updates: int = 40
    """PPO updates (rollouts)."""
    episodes: int = 128
    """Responses in a rollout."""
    ppo_epochs: int = 2
    """Passes over a rollout."""
    minibatches: int = 2
    """Optimizer steps of a pass."""
    learning_rate: float = 3e-4
    """Of Adam, for policy and critic."""
    kl_coefficient: float = 0.3
    """Where the adaptive coefficient starts."""
    kl_horizon: float = 320.0
    """Episodes over which it changes by a fifth."""
    scale: Scale = field(default_factory=Scale)
    """How both are computed."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What of it decides a result, as ``Scale.inputs`` does."""
        values = asdict(self)
        del values["scale"]
        return values | self.scale.inputs

    def in_words(self, target_kl: float) -> str:
        """A run that is held at ``target_kl``, for a report."""
        return (
            f"a reward model after {self.reward_steps} updates of {self.reward_prompts_per_step} prompts each, then "
            f"{self.updates} updates of PPO with {self.episodes} responses each, held at {target_kl:g} nats a response"
        )


@dataclass(frozen=True, kw_only=True)
class RLHF(RewardAndPPO):
    """The study's runs; no targets, no RLHF."""

    targets: tuple[float, ...] = ()
    """KLs (nats a response) that PPO and PPO-GT are run for."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the PPO run at ``seeds_at``; the other targets have the first alone."""
    true_seeds: tuple[int, ...] = (0,)
    """The same of PPO-GT, which raises the true reward."""
    seeds_at: float = 6.0
    """The target that is run with every seed."""
    reward_extra_prompts: int = 0
    """Further prefixes whose samples only the reward model learns from: it needs more than DPO does."""
    points: int = 4
    """Measurements along a run, the last at its end."""
    early: tuple[int, ...] = ()
    """Updates after which it is measured as well: while its KL is still small."""

    def __post_init__(self) -> None:
        if not all(0 < step <= self.updates for step in self.early):
            raise InputError(f"--rlhf.early: updates are 1 to {self.updates}, not {' '.join(map(str, self.early))}")

    @property
    def inputs(self) -> dict[str, Any]:
        """Without what is at its default and came later: runs that are kept stay what they are."""
        values = super().inputs
        return values if self.early else {name: value for name, value in values.items() if name != "early"}

    @property
    def measure_every(self) -> int:
        """Updates between measurements."""
        return max(1, -(-self.updates // self.points))

    @property
    def measured(self) -> set[int]:
        """Updates after which a run is measured."""
        return {*range(self.measure_every, self.updates, self.measure_every), self.updates, *self.early}


@dataclass(frozen=True)
class PPO:
    """A PPO run: which reward it raises, and the KL it is held at."""

    reward: Literal["learned", "true"]
    target_kl: float


def train_reward(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    demonstrations: Sequence[Example],
    study: Any,
    report: Report,
    *,
    held_out: int | None = None,
    directory: Path | None = None,
) -> tuple[RewardModel, evaluation.Calibration]:
    """A reward model initialised from the start model, and what it knows of preferences it has not seen.

    The last ``held_out`` examples are held out; None: the share ``reward_held_out`` of them, where each is a prompt
    with all its samples. Its mean on demonstrations (of preferences: on the answers that no other beats) is 0.
    ``directory``: where its metrics and checkpoints go, if any.
    """
    settings: RewardAndPPO = study.rlhf
    held = held_out or max(1, round(len(examples) * settings.reward_held_out))
    scored, tree = models.add_score_head(config, params, jax.random.key(study.seed))
    fit = FitConfig(
        max_steps=settings.reward_steps,
        batch_size=settings.reward_prompts_per_step,
        optimizer=OptimizerConfig(
            learning_rate=settings.reward_learning_rate, schedule="linear", warmup_steps=10, clip_norm=1.0
        ),
        frozen_layers=study.frozen_layers,
        eval_every=max(1, settings.reward_steps // 8),
        seed=study.seed,
        dtype=settings.scale.dtype,
        accumulation=settings.scale.accumulation,
        remat=settings.scale.remat,
        save_every=settings.scale.save_every(settings.reward_steps),
    )
    result = recipes.fit(
        scored,
        tree,
        examples[:-held],
        lambda model_config: recipes.reward_objective(model_config, RewardObjective()),
        fit,
        eval_examples=examples[-held:],
        keep_best="eval/rewards/accuracy",
        directory=directory,
        report=report,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    margins = recipes.reward_model.pair_margins(result.config, result.params, examples[-held:])
    mean, _, _ = recipes.reward_model.moments(result.config, result.params, demonstrations)
    return RewardModel(result.config, result.params, mean), evaluation.calibration(margins)


def save_reward(folder: Path, found: tuple[RewardModel, dict[str, Any]], tokenizer: Any) -> None:
    """Into a stage's folder."""
    model, known = found
    models.save_reward_model(folder / "model", model, tokenizer, measured_on="windows of reviews")
    JSON.save(folder, known)


def load_reward(folder: Path) -> tuple[RewardModel, dict[str, Any]]:
    """What ``save_reward`` wrote."""
    return models.load_reward_model(folder / "model", dtype="float32"), JSON.load(folder)


def train_ppo(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Prompt],
    reward: TextReward | RewardModel,
    method: PPO,
    study: Any,
    tokenizer: Any,
    *,
    seed: int,
    reference: Params | None = None,
    evaluate: Callable[[int, Params], None] | None = None,
    evaluate_every: int = 0,
    directory: Path | None = None,
    report: Report,
) -> tuple[Params, dict[str, float]]:
    """One PPO run held at ``method.target_kl`` from ``reference`` (None: ``params``); the policy and its metrics.

    ``evaluate`` is called with (update, policy) every ``evaluate_every`` updates and after the last. ``directory``:
    where metrics and checkpoints go, if any.
    """
    settings: RewardAndPPO = study.rlhf
    ppo = PPOFitConfig(
        max_steps=settings.updates,
        batch_size=settings.episodes,
        ppo_epochs=settings.ppo_epochs,
        minibatches=settings.minibatches,
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate, warmup_steps=4, epsilon=1e-5, clip_norm=1.0),
        max_new_tokens=study.max_new_tokens,
        temperature=study.temperature,
        sampling_batch=study.sampling_batch,
        kl_coefficient=settings.kl_coefficient,
        kl_target=method.target_kl,
        kl_horizon=settings.kl_horizon,
        frozen_layers=study.frozen_layers,
        seed=seed,
        dtype=settings.scale.dtype,
        accumulation=settings.scale.accumulation,
        remat=settings.scale.remat,
        save_every=settings.scale.save_every(settings.updates),
    )

    def evaluate_after(step: int, whole: Params) -> dict[str, float]:
        if step and evaluate is not None:
            evaluate(step, whole)
        return {}

    result = recipes.fit_ppo(
        config,
        params,
        [data.Prompt(list(prompt.ids), prompt.opening) for prompt in prompts],
        reward,
        ppo,
        decode=tokenizer.decode,
        stop_tokens=[token for token in (tokenizer.eos_token_id,) if token is not None],
        reference=reference,
        evaluate=None if evaluate is None else evaluate_after,
        evaluate_every=evaluate_every,
        directory=directory,
        report=report,
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return result.params, {name: float(np.float64(value)) for name, value in result.metrics.items()}
