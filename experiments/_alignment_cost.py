"""What a method pays until a judge gives it a target score: time, tokens, memory, each measured in the run itself.

A run stops at the first measurement that reaches the target. The score it is then reported with is measured anew, on
fresh samples: the one that stopped it was chosen for being high.
"""

import contextlib
import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments._hindsight import METHODS, Scale, Training
from experiments._hindsight import train as train_hindsight
from experiments._hindsight_reviews import ReviewsTask
from experiments._sentiment import Method, Study
from experiments._sentiment_rlhf import PPO, train_ppo, train_reward
from experiments._sentiment_training import demonstrations
from experiments._sentiment_training import train as train_pairs
from experiments._stages import Report
from jaxalign import models
from jaxalign.data import FeedbackPrompts
from jaxalign.recipes import PreferenceObjective
from jaxalign.training import read_rows

__all__ = ["PIPELINES", "Comparison", "Part", "Pipeline", "Point", "Run", "inputs_of", "run_pipeline"]

Params = Any
FRESH = 1000  # added to the seed of the samples that a run is reported with
REWARD_ZERO = 256  # reviews on which the reward model's mean is 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The numbers of one preset."""

    study: Study
    """Start model, openings, raters, preferences; DPO's and PPO's own numbers."""
    hindsight: Training
    """Chain of Hindsight's."""
    target: float = 0.65
    """The judge's mean P(positive) on held-out openings at which a run stops."""
    beta: float = 0.1
    """DPO's."""
    target_kl: float = 6.0
    """PPO's, nats a response."""
    measure_every: int = 4
    """Updates of DPO and Chain of Hindsight between measurements; PPO has ``study.rlhf.points``."""
    scale: Scale = field(default_factory=Scale)
    """How Chain of Hindsight is computed; SFT and DPO as ``study.scale`` says, the rest as ``study.rlhf.scale``."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""


@dataclass(frozen=True)
class Pipeline:
    """What a method needs once the preferences are there."""

    name: str
    stages: tuple[str, ...]
    """Training stages, one after the other."""
    resident: tuple[str, ...]
    """Models held while the last of them trains."""
    trained: tuple[Literal["policy", "scored"], ...]
    """What all stages train: the policy, or as large a model with a head for scores."""


PIPELINES = (
    Pipeline("DPO", ("DPO",), ("policy", "reference"), ("policy",)),
    Pipeline("CoH", ("CoH",), ("policy",), ("policy",)),
    Pipeline(
        "PPO", ("reward model", "PPO"), ("policy", "critic", "reference", "reward"), ("scored", "policy", "scored")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One training stage of a run."""

    stage: str
    updates: int
    seconds: float
    """Updates x the median time of one: without compilation and measurements."""
    trained_tokens: int
    """Tokens of the sequences in its updates, as often as they are passed over."""
    generated_tokens: int
    """Sampled by the stage itself."""
    held_bytes: int
    """Of the arrays that the run has on the devices after an update (weights, moments, data), the most seen."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measurement on the way."""

    update: int
    judge: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A pipeline with one seed, up to the target or to its last update."""

    pipeline: str
    seed: int
    reached: bool
    parts: list[Part]
    points: list[Point]
    judge: list[float]
    """P(positive) of every held-out opening at the end, fresh samples."""
    trained_parameters: int

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Run":
        """What ``dataclasses.asdict`` made."""
        return cls(**{
            **row,
            "parts": [Part(**part) for part in row["parts"]],
            "points": [Point(**point) for point in row["points"]],
        })  # fmt: skip

    def total(self, name: Literal["seconds", "trained_tokens", "generated_tokens"]) -> float:
        """Over all stages."""
        return sum(getattr(part, name) for part in self.parts)

    @property
    def held_bytes(self) -> int:
        """The most of any stage."""
        return max(part.held_bytes for part in self.parts)

    def cost_at(self, update: int, name: Literal["seconds", "generated_tokens"]) -> float:
        """Up to an update of the last stage."""
        *before, last = self.parts
        return sum(getattr(part, name) for part in before) + getattr(last, name) * update / last.updates


class _ReachedError(Exception):
    """Ends a run at the target; nothing of its state is needed any more."""


@dataclass
class _Judge:
    """Measures a model while it trains, and stops it at the target."""

    task: ReviewsTask
    target: float
    last: int
    """The last update of a run that is not stopped."""
    seed: int
    folder: Path
    """Where its verdicts lie: a run that goes on from a checkpoint is not judged again."""

    def __call__(self, update: int, params: Params, prompts: FeedbackPrompts | None = None) -> None:
        def judged(seed: int) -> list[float]:
            return self.task.rated(params, prompts, seed=seed, report=_quiet)["judge"]

        point = Point(update=update, judge=float(np.mean(judged(self.seed))))
        reached = point.judge >= self.target
        final = judged(self.seed + FRESH) if reached or update == self.last else []
        self.folder.mkdir(parents=True, exist_ok=True)
        verdict = {"point": asdict(point), "reached": reached, "final": final}
        (self.folder / f"{update}.json").write_text(json.dumps(verdict), encoding="utf-8")
        if reached:
            raise _ReachedError

    def verdicts(self) -> list[dict[str, Any]]:
        """All of a run that is over, in turn."""
        files = sorted(self.folder.glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def run_pipeline(
    task: ReviewsTask, comparison: Comparison, pipeline: Pipeline, *, seed: int, directory: Path, report: Report
) -> Run:
    """Train a pipeline's stages up to the target; ``directory`` is for its metrics, and for what a run that is killed
    goes on from where its scale keeps checkpoints."""
    study, assets, training = comparison.study, task.assets, comparison.hindsight
    last = {"DPO": study.steps, "CoH": training.steps, "PPO": study.rlhf.updates}[pipeline.stages[-1]]
    folders = {stage: directory / stage.replace(" ", "-") for stage in pipeline.stages}
    judge = _Judge(task, comparison.target, last, seed, folders[pipeline.stages[-1]] / "judged")
    reward: list[models.RewardModel] = []

    def dpo(folder: Path, report: Report) -> None:
        objective = PreferenceObjective(loss=("sigmoid",), beta=comparison.beta, temperature=study.temperature)
        own = replace(study, measure_every=comparison.measure_every)
        train_pairs(
            task.config, task.start, assets.examples, Method("DPO", "", objective, seed), own,
            evaluate=judge, report=report, directory=folder,
        )  # fmt: skip

    def hindsight(folder: Path, report: Report) -> None:
        train_hindsight(
            task.config, task.start, task.records, task.text, task.tokenizer, METHODS["CoH"], training,
            templates=task.templates, kind=task.kind, seed=seed, report=report,
            scale=comparison.scale, directory=folder,
            evaluate=judge, evaluate_every=comparison.measure_every,
        )  # fmt: skip

    def reward_model(folder: Path, report: Report) -> None:
        windows = demonstrations(task.tokenizer, assets.sft_texts[:REWARD_ZERO], study)
        own = replace(study, seed=seed)
        found, _ = train_reward(task.config, task.start, assets.examples, windows, own, report, directory=folder)
        reward.append(found)

    def ppo(folder: Path, report: Report) -> None:
        train_ppo(
            task.config, task.start, assets.training, reward[0], PPO("learned", comparison.target_kl), study,
            task.tokenizer, seed=seed, evaluate=judge, evaluate_every=study.rlhf.measure_every, report=report,
            directory=folder,
        )  # fmt: skip

    train = {"DPO": dpo, "CoH": hindsight, "reward model": reward_model, "PPO": ppo}
    scales = {"DPO": study.scale, "CoH": comparison.scale, "reward model": study.rlhf.scale, "PPO": study.rlhf.scale}
    gc.collect()
    before = _live_bytes()
    parts = []
    for stage, folder in folders.items():
        if not scales[stage].checkpoints:
            shutil.rmtree(folder, ignore_errors=True)
        held = _Most(folder / "held_bytes")

        def watched(done: int, total: int, note: str = "", stage: str = stage, held: _Most = held) -> None:
            held.see(_live_bytes() - before)
            report(done, total, f"{stage}: {note}")

        with contextlib.suppress(_ReachedError):
            train[stage](folder, watched)
        parts.append(_part(stage, folder / "metrics.jsonl", held.value, study.rlhf.ppo_epochs if stage == "PPO" else 0))
    verdicts = judge.verdicts()
    return Run(
        pipeline=pipeline.name,
        seed=seed,
        reached=verdicts[-1]["reached"],
        parts=parts,
        points=[Point(**verdict["point"]) for verdict in verdicts],
        judge=verdicts[-1]["final"],
        trained_parameters=_trained(task, study.frozen_layers, pipeline),
    )


class _Most:
    """The largest of what is seen, in a file beside a run's metrics: a run that goes on knows what it saw before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self.value = int(text or 0)

    def see(self, value: int) -> None:
        if value > self.value:
            self.value = value
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(str(value), encoding="utf-8")


def _part(stage: str, metrics: Path, held_bytes: int, rollout_passes: int) -> Part:
    updates = [row for row in read_rows(metrics) if "loss" in row]
    tokens = sum(int(row["tokens"]) for row in updates)
    return Part(
        stage=stage,
        updates=len(updates),
        seconds=len(updates) * float(np.median([row["seconds"] for row in updates])),
        trained_tokens=tokens * max(rollout_passes, 1),
        generated_tokens=tokens if rollout_passes else 0,
        held_bytes=held_bytes,
    )


def _trained(task: ReviewsTask, frozen_layers: int, pipeline: Pipeline) -> int:
    """Numbers that all stages train."""

    def count(config: models.ModelConfig, params: Params) -> int:
        trainable = models.freeze(config, params, frozen_layers)[1]
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trainable))

    sizes = {
        "policy": count(task.config, task.start),
        "scored": count(*models.add_score_head(task.config, task.start, jax.random.key(0))),
    }
    return sum(sizes[name] for name in pipeline.trained)


def _live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays() if not array.is_deleted())


def _quiet(done: int, total: int, note: str = "") -> None:
    return None


def inputs_of(comparison: Comparison) -> dict[str, Any]:
    """What decides a run, beside the task's inputs, the pipeline and the seed."""
    values = asdict(comparison)
    del values["seeds"], values["study"]
    study = asdict(comparison.study) | {"rlhf": comparison.study.rlhf.inputs}
    own = {name: study[name] for name in ("frozen_layers", "rlhf", *_UPDATES)}
    return values | {"study": own | comparison.study.optimizer_inputs}


_UPDATES: Sequence[str] = ("steps", "prompts_per_step", "learning_rate", "warmup_steps")
