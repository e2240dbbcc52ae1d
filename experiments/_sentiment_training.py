"""Training runs of the sentiment study: its start model, and the methods that learn from pairs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments._hindsight import Scale
from experiments._sentiment import Method, Study
from experiments._stages import Report
from experiments.assets.movie_reviews import first_words
from jaxalign import data, models, recipes, sharding
from jaxalign.data import Example
from jaxalign.models import ModelConfig
from jaxalign.recipes import FitConfig, PreferenceObjective
from jaxalign.training import OptimizerConfig

__all__ = ["demonstrations", "fine_tune", "shared_activations", "train"]

Params = Any


def demonstrations(tokenizer: Any, texts: Sequence[str], study: Study) -> list[Example]:
    """Windows of reviews, the first of each behind a newline."""
    records = []
    for text in texts:
        words = text.split()
        for start in range(0, min(len(words), 120), 40):
            piece = first_words(" ".join(words[start:]), 40)
            if len(piece.split()) < 10:
                continue
            records.append({"text": ("\n" if start == 0 else " ") + piece, "finished": False})
    truncation = data.Truncation(max_length=study.sft_length)
    return data.build_examples(records, tokenizer, kind="text", truncation=truncation)[0]


def fine_tune(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    texts: Sequence[str],
    study: Study,
    report: Report,
    directory: Path | None = None,
) -> Params:
    """The start model: supervised fine-tuning on windows of reviews, the first of each behind a newline.

    ``directory``: where its metrics and checkpoints go, if any.
    """
    examples = demonstrations(tokenizer, texts, study)
    optimizer = OptimizerConfig(
        learning_rate=study.sft_learning_rate, schedule="cosine", warmup_steps=10, clip_norm=1.0
    )
    settings = FitConfig(
        max_steps=study.sft_steps,
        batch_size=study.sft_batch,
        optimizer=optimizer,
        seed=study.seed,
        **_computed(study.scale, study.sft_steps),
    )
    result = recipes.fit(
        config, params, examples, recipes.likelihood_objective, settings, directory=directory, report=report
    )
    if result.interrupted:  # a stage that was stopped has no result to keep
        raise KeyboardInterrupt
    return result.params


def train(
    config: ModelConfig,
    params: Params,
    examples: Sequence[Example],
    method: Method,
    study: Study,
    *,
    evaluate: Callable[[int, Params], None],
    report: Report,
    directory: Path | None = None,
) -> Params:
    """One run of a pairwise method; ``evaluate`` is called with the model at every ``measure_every`` steps.

    ``directory``: where its metrics and checkpoints go, if any.
    """
    settings = FitConfig(
        max_steps=study.steps,
        batch_size=study.prompts_per_step,
        optimizer=OptimizerConfig(
            optimizer=study.optimizer,
            learning_rate=study.learning_rate,
            warmup_steps=study.warmup_steps,
            clip_norm=10.0,
        ),
        frozen_layers=study.frozen_layers,
        eval_every=study.measure_every,
        seed=method.seed,
        **_computed(study.scale, study.steps),
    )

    objective = method.objective
    assert isinstance(objective, PreferenceObjective)

    def make_objective(model_config: ModelConfig) -> recipes.Objective:
        return recipes.preference_objective(model_config, objective)

    def evaluate_after(step: int, whole: Params) -> dict[str, float]:
        if step:  # step 0 is the start model, measured once for all
            evaluate(step, whole)
        return {}

    result = recipes.fit(
        config, params, examples, make_objective, settings,
        directory=directory, evaluate=evaluate_after, report=report,
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    return result.params


def _computed(scale: Scale, updates: int) -> dict[str, Any]:
    """A run's scale as ``FitConfig`` takes it."""
    return {
        "dtype": scale.dtype, "accumulation": scale.accumulation, "remat": scale.remat,
        "save_every": scale.save_every(updates),
    }  # fmt: skip


def shared_activations(
    config: ModelConfig, params: Params, examples: Sequence[Example], study: Study, *, report: Report
) -> list[Example]:
    """Examples that carry what no run changes: the frozen layers' activations and the reference's log-probs."""
    mesh = sharding.make_mesh()
    config = config.replace(compute_dtype=study.scale.dtype)  # as the runs compute what is not carried
    split, trainable, base = models.freeze(config, params, study.frozen_layers)
    found = list(examples)
    if study.frozen_layers:
        found = recipes.attach_trunk(
            split, base, found, mesh=mesh, batch_size=study.prompts_per_step,
            on_progress=lambda done, total: report(done, total, "examples through the frozen layers, for all runs"),
        )  # fmt: skip
    return recipes.attach_reference_log_probs(
        split, base, trainable, found, temperature=study.temperature, mesh=mesh, batch_size=study.prompts_per_step,
        on_progress=lambda done, total: report(done, total, "examples through the reference, for all runs"),
    )  # fmt: skip
