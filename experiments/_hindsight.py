"""Chain of Hindsight beside its baselines and ablations: what is trained, with what, for how long.

``experiments.coh_sentiment``, ``coh_summarization`` and ``coh_dialogue`` put this together with a task each
(``experiments._hindsight_tasks``) and write the report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments._stages import Report
from jaxalign import data, models, recipes, sharding
from jaxalign.data import ChainFormat, FeedbackPrompts
from jaxalign.models import ModelConfig
from jaxalign.recipes import FitConfig, HindsightObjective, Pretraining
from jaxalign.training import OptimizerConfig

__all__ = [
    "BASE",
    "METHODS",
    "RLHF_ROW",
    "Method",
    "RLHFRuns",
    "Scale",
    "Training",
    "asked_prompts",
    "chains_of",
    "train",
    "with_trunk",
]

Params = Any
BASE = "Base"
RLHF_ROW = "RLHF (PPO)"


@dataclass(frozen=True)
class Method:
    """A row of the table: what sequences look like, and what is learnt of them."""

    name: str
    form: dict[str, Any] = field(default_factory=dict)
    """Of ``ChainFormat``."""
    objective: dict[str, Any] = field(default_factory=dict)
    """Of ``HindsightObjective``."""

    @property
    def outputs(self) -> int:
        """Outputs in a sequence."""
        return 1 if set(self.form.get("structures", ("pn",))) <= {"p", "n"} else 2


_ALONE = {"structures": ("p", "n"), "emit": "each"}
_PLAIN = {"forget_max_ratio": 0.0}

METHODS = {
    method.name: method
    for method in (
        Method("SFT", {"structures": ("p",), "markers": "neutral"}, _PLAIN),
        Method("SFT on all", {**_ALONE, "markers": "neutral"}, _PLAIN),
        Method("C-SFT", _ALONE, _PLAIN),
        Method("SFT-U", {**_ALONE, "markers": "neutral"}, _PLAIN | {"unlikelihood_weight": 0.5}),
        Method("CoH"),
        Method("CoH, no forgetful mask", {}, _PLAIN),
        Method("CoH, no chain", {"structures": ("p", "n")}),
        Method("CoH, no pretraining term", {}, {"pretraining_weight": 0.0}),
        Method("CoH, feedback learnt too", {"learn_markers": True}),
    )
}
"""The paper's baselines and ablations (Liu et al. 2023, arXiv 2302.02676, sections 4.1 and 4.4), and two that are not
in it: SFT on all outputs, and feedback learnt too. SFT-U's alpha is not searched for, as the paper does."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run's numbers; the same for every method of a table."""

    steps: int = 100
    """Updates."""
    outputs: int = 16
    """Outputs in an update, whatever the method: a chain of two counts twice."""
    learning_rate: float = 5e-4
    """Of Adam (betas .9, .95), after the warm-up."""
    warmup_steps: int = 10
    """Linear warm-up."""
    frozen_layers: int = 0
    """Lowest layers that stay as they are."""
    max_length: int = 128
    """Most tokens of a sequence."""
    pretraining_batch_size: int = 16
    """Rows of pretraining text in an update."""
    pretraining_length: int = 64
    """Tokens of such a row."""
    pretraining_weight: float = 1.5
    """Lambda; 1.5 is the paper's."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How runs are computed; but for rounding no result depends on it."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products."""
    accumulation: int = 1
    """Micro-batches of an update."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass computes again."""
    checkpoints: bool = False
    """Keep checkpoints, ten along a run, so that one that is killed goes on from the last."""

    def save_every(self, updates: int) -> int:
        """Updates between the checkpoints of a run."""
        return max(1, updates // 10) if self.checkpoints else updates

    def kept(self, directory: Path) -> Path | None:
        """Where a run keeps them; None = nowhere."""
        return directory if self.checkpoints else None

    @property
    def inputs(self) -> dict[str, str]:
        """What of it decides a stage: rounding, where it is another than float32's."""
        return {} if self.dtype == "float32" else {"dtype": self.dtype}


@dataclass(frozen=True)
class RLHFRuns:
    """How the RLHF of a task is run, whatever its reward model learns from."""

    inputs: Mapping[str, Any]
    """What decides it, beside the task's inputs and the seed."""
    policy: Callable[..., Params]
    """``(seed, report, directory) -> parameters``, all by keyword; ``directory`` is where checkpoints go, if any."""
    in_words: str
    """Its numbers, for a report."""


def chains_of(
    records: Sequence[Any],
    tokenizer: Any,
    method: Method,
    training: Training,
    *,
    templates: str,
    kind: data.FeedbackKind,
    seed: int,
) -> data.ChainExamples:
    """What a run of a method learns from."""
    return data.build_chains(
        records,
        tokenizer,
        ChainFormat(templates=templates, kind=kind, **method.form),
        truncation=data.Truncation(max_length=training.max_length, prompt="keep_end"),
        seed=seed,
        on_bad_row="skip",  # such as the two rows of the HH sample without an answer
    )[0]


def train(
    config: ModelConfig,
    params: Params,
    records: Sequence[Any],
    text: Sequence[data.Example],
    tokenizer: Any,
    method: Method,
    training: Training,
    *,
    templates: str,
    kind: data.FeedbackKind,
    seed: int,
    report: Report,
    scale: Scale | None = None,
    directory: Path | None = None,
    evaluate: Callable[[int, Params, FeedbackPrompts], None] | None = None,
    evaluate_every: int = 0,
) -> tuple[Params, FeedbackPrompts]:
    """One run of a method; the model, and how it is asked. ``directory``: where its metrics and checkpoints go, if any.

    ``evaluate`` is called with (update, model, how it is asked) every ``evaluate_every`` updates and after the last.
    """
    scale = Scale() if scale is None else scale
    chains = chains_of(records, tokenizer, method, training, templates=templates, kind=kind, seed=seed)
    prompts = FeedbackPrompts(chains.writer)
    objective = HindsightObjective(**{"pretraining_weight": training.pretraining_weight, **method.objective})
    pretraining = None
    if objective.pretraining_coefficient > 0:
        pretraining = Pretraining(text, training.pretraining_batch_size, training.pretraining_length)
    settings = FitConfig(
        max_steps=training.steps,
        batch_size=training.outputs // method.outputs,
        optimizer=OptimizerConfig(
            learning_rate=training.learning_rate, warmup_steps=training.warmup_steps, beta2=0.95, clip_norm=1.0
        ),
        frozen_layers=training.frozen_layers,
        seed=seed,
        dtype=scale.dtype,
        accumulation=scale.accumulation,
        remat=scale.remat,
        save_every=scale.save_every(training.steps),
        eval_every=evaluate_every,
    )

    def evaluate_after(step: int, whole: Params) -> dict[str, float]:
        if step and evaluate is not None:
            evaluate(step, whole, prompts)
        return {}

    result = recipes.fit(
        config,
        params,
        chains,
        lambda model_config: recipes.hindsight_objective(model_config, objective),
        settings,
        pretraining=pretraining,
        directory=directory,
        evaluate=None if evaluate is None else evaluate_after,
        report=report,
    )
    if result.interrupted:  # a stage that was stopped has no result to keep
        raise KeyboardInterrupt
    return result.params, prompts


def with_trunk(
    config: ModelConfig, params: Params, text: Sequence[data.Example], training: Training
) -> list[data.Example]:
    """As many windows as the updates can take, with what the frozen layers make of them: the same numbers, once."""
    if not training.frozen_layers:
        return list(text)
    text = text[: 2 * training.steps * training.pretraining_batch_size]
    mesh = sharding.make_mesh()
    split, _, base = models.freeze(config, params, training.frozen_layers)
    return recipes.attach_trunk(split, base, text, mesh=mesh, batch_size=training.pretraining_batch_size)


def asked_prompts(tokenizer: Any, method: Method | None, templates: str, kind: data.FeedbackKind) -> FeedbackPrompts:
    """How the model of a method is asked; None: one that was not trained, in neutral words."""
    form = {"structures": ("p",), "markers": "neutral"} if method is None else method.form
    chain_format = ChainFormat(templates=templates, kind=kind, **form)
    return FeedbackPrompts(data.ChainWriter(tokenizer, data.load_templates(templates), chain_format))
