"""Every recipe on eight examples with plain SGD, on any mesh of any number of processes: what must be equal runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxalign import data, models, recipes
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.recipes.toy import Run

STEPS = 10
MODEL = "llama"


def sft(**options: Any) -> Run:
    return toy.train(MODEL, toy.examples(toy.demonstrations()), recipes.likelihood_objective, **options)


def dpo(**options: Any) -> Run:
    objective = recipes.PreferenceObjective(beta=0.5)
    return toy.train(
        MODEL,
        toy.examples(toy.pair_records()),
        lambda config: recipes.preference_objective(config, objective),
        **options,
    )


@functools.cache
def scored() -> tuple[models.ModelConfig, Any]:
    """A reward model: the model with a new head."""
    return models.add_score_head(toy.SHAPES[MODEL], toy.params(MODEL), jax.random.key(5))


def reward(**options: Any) -> Run:
    objective = recipes.RewardObjective(centering=0.05)
    return toy.train(
        scored()[0],
        toy.examples(toy.pair_records()),
        lambda config: recipes.reward_objective(config, objective),
        start=scored()[1],
        **options,
    )


def hindsight(**options: Any) -> Run:
    """Drawn chains, forgetful masks, pretraining text."""
    objective = recipes.HindsightObjective(forget_min_ratio=0.1, forget_max_ratio=0.3)
    return toy.train(
        MODEL,
        toy.chains(),
        lambda config: recipes.hindsight_objective(config, objective),
        pretraining=toy.pretraining(),
        **options,
    )


def likes_short(prompts: list[str], completions: list[str]) -> list[float]:
    """Fewer characters are better."""
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [-0.05 * len(completion) for completion in completions]


def ppo(
    steps: int = STEPS,
    folder: Path | None = None,
    rate: Callable[[list[str], list[str]], list[float]] = likes_short,
    **options: Any,
) -> Run:
    """Eight responses an update, two passes of one optimizer step, a text reward."""
    records = [{"prompt": text} for text in (" the film was", " the plot was fun but", " it", " good and bad")]
    prompts = data.build_prompts(records * 3, toy.tokenizer())[0]
    config = recipes.PPOFitConfig(**{
        "max_steps": steps, "batch_size": 8, "minibatches": 1, "ppo_epochs": 2, "max_new_tokens": 6,
        "sampling_batch": 8, "samples_per_prompt": 2, "mesh": "data=1",
        "optimizer": OptimizerConfig(optimizer="sgd", learning_rate=0.05),
    } | options)  # fmt: skip

    def run(keep: Callable[[int, Any], dict[str, float]], directory: Path) -> None:
        recipes.fit_ppo(
            toy.SHAPES[MODEL], toy.params(MODEL), prompts, rate, config, decode=toy.tokenizer().decode,
            stop_tokens=(0,), directory=directory, evaluate=keep, evaluate_every=1, report=lambda *_: None,
        )  # fmt: skip

    return toy.record(run, steps, folder)


RECIPES: dict[str, Callable[..., Run]] = {"sft": sft, "dpo": dpo, "reward": reward, "hindsight": hindsight, "ppo": ppo}


@functools.cache
def run(recipe: str, mesh: str = "data=1", **options: Any) -> Run:
    """Ten updates of a recipe on a mesh, as text."""
    return RECIPES[recipe](mesh=mesh, **{"steps": STEPS} | options)


def continued(folder: Path, updates: int, mesh: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The parameters and last metrics of a DPO run of so many updates, which goes on from what is in ``folder``."""
    objective = recipes.PreferenceObjective(beta=0.5)
    result = recipes.fit(
        toy.SHAPES[MODEL], toy.params(MODEL), toy.examples(toy.pair_records()),
        lambda config: recipes.preference_objective(config, objective),
        recipes.FitConfig(
            max_steps=updates, batch_size=8, mesh=mesh, optimizer=OptimizerConfig(optimizer="sgd", learning_rate=0.1)
        ),
        cache_reference=True, directory=folder, report=lambda *_: None,
    )  # fmt: skip
    return toy.leaves(result.params), result.metrics
