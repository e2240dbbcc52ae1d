"""Every run of the TL;DR study, kept stage by stage, and the summaries that come of it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from experiments import _tldr_training as training
from experiments._hindsight_tasks import load_model
from experiments._stages import JSON, TREE, Codec, Report, Stages, digest
from experiments._tldr import Posts, Study, ask, comparisons, load_posts, prompts_of
from experiments._tldr_training import Summary
from jaxalign import evaluation
from jaxalign.recipes import PreferenceObjective
from jaxalign.training import fingerprint

__all__ = ["BEST_OF_N", "METHODS", "Runs", "run_all"]

METHODS = ("Base", "SFT", "Preferred-FT", "PPO", "DPO")
BEST_OF_N = "Best-of-{}"
Params = Any


@dataclass(frozen=True)
class Runs:
    """What the methods wrote on the held-out posts."""

    posts: Posts
    summaries: Mapping[str, list[list[list[Summary]]]]
    """By method: ``[seed][temperature][post]``."""
    candidates: list[list[list[Summary]]]
    """``[temperature][post][sample]`` of the SFT model, each with its reward model's ``score``; one sample where
    temperature 0 makes all equal."""
    reward_accuracy: float
    """Of the reward model on held-out preferences."""
    pairs: int
    """Preferences."""


class _Keeper:
    """Stages with what all of them follow from."""

    def __init__(self, stages: Stages, runs: Path, known: dict[str, Any]) -> None:
        self.stages, self.runs, self.known = stages, runs, known

    def __call__(self, name: str, inputs: dict[str, Any], compute: Callable[[Report], Any], codec: Codec) -> Any:
        self.known = self.known | {name: inputs}
        return self.stages.stage(name, self.known, compute, *codec)

    def apart(self, name: str, inputs: dict[str, Any], compute: Callable[[Report], Any]) -> Any:
        """A stage that no later one follows from."""
        return self.stages.stage(name, self.known | inputs, compute, *JSON)

    def directory(self, name: str, inputs: Mapping[str, Any] | None = None) -> Path:
        """Of a stage's checkpoints: other inputs, another folder. ``inputs``: of one that stands apart."""
        return self.runs / self.stages.folder(name, self.known | dict(inputs or {})).name


def run_all(study: Study, stages: Stages, output: Path) -> Runs:
    """Compute what is not kept yet."""
    posts = load_posts(study)
    config, start, tokenizer = load_model(study.model)
    keep = _Keeper(stages, output / "runs", {
        "weights": digest(sorted(fingerprint(start).items())), "posts": digest(posts), "seed": study.seed,
        "max_length": study.max_length, "max_new_tokens": study.max_new_tokens, "dtype": study.scale.dtype,
    })  # fmt: skip
    prompts = prompts_of(posts.held_out, tokenizer, study)
    summaries: dict[str, list[list[list[Summary]]]] = {}

    def write(params: Params, seed: int, report: Report) -> list[list[Summary]]:
        """``[temperature][post]``."""
        return [
            [row for (row,) in training.summarise(
                config, params, tokenizer, prompts, study, temperature=temperature, seed=study.seed + 1 + seed,
                report=report,
            )]
            for temperature in study.temperatures
        ]  # fmt: skip

    def method(name: str, seed: int, inputs: dict[str, Any], train: Callable[[Report, Path], Params]) -> None:
        label = f"{name.lower()}-seed-{seed}"
        own = inputs | {"temperatures": list(study.temperatures), "training seed": seed}
        directory = keep.directory(label, own)
        rows = keep.apart(label, own, lambda report: write(train(report, directory), seed, report))
        summaries.setdefault(name, []).append(rows)

    method("Base", 0, {}, lambda report, _: start)
    sft = start
    if study.reading.steps:
        sft = keep(
            "reading", asdict(study.reading) | {"words": list(study.reading_words)},
            lambda report: training.learn_to_read(config, start, posts.texts, tokenizer, study, report), TREE,
        )  # fmt: skip
    if study.sft.steps:
        reader = sft

        def fine_tune(report: Report) -> Params:
            examples = training.demonstrations(posts.windows, tokenizer, study)
            return training.fine_tune(config, reader, examples, study, report, keep.directory("sft"))

        sft = keep("sft", asdict(study.sft), fine_tune, TREE)
    method("SFT", 0, {}, lambda report, _: sft)

    records = _preferences(study, keep, config, sft, tokenizer, posts)
    compared = training.preferences(records, tokenizer, study)
    keep.known = keep.known | {"compared": digest([dict(record) for record in records])}
    objectives: tuple[tuple[Literal["Preferred-FT", "DPO"], Any, PreferenceObjective, tuple[int, ...]], ...] = (
        ("Preferred-FT", study.preferred_ft, PreferenceObjective(loss=("preferred_ft",)), study.seeds[:1]),
        ("DPO", study.dpo, PreferenceObjective(beta=study.dpo_beta), study.seeds),
    )
    for name, settings, objective, seeds in objectives:
        for seed in seeds:
            inputs = {"run": asdict(settings), "beta": objective.beta}

            def train(
                report: Report, directory: Path, run: Any = settings, objective: Any = objective, seed: int = seed
            ) -> Params:
                return training.train_preferences(
                    config, sft, compared, objective, run, study,
                    seed=seed, report=report, directory=directory,
                )  # fmt: skip

            method(name, seed, inputs, train)

    def learn_reward(report: Report) -> tuple[Any, dict[str, Any]]:
        references = training.demonstrations(posts.sft[:256], tokenizer, study)
        directory = keep.directory("reward-model")
        model, known = training.train_reward(config, sft, compared, references, study, report, directory)
        return model, asdict(known)

    codec = Codec(lambda folder, found: training.save_reward(folder, found, tokenizer), training.load_reward)
    reward, calibration = keep("reward-model", asdict(study.reward), learn_reward, codec)
    for seed in study.seeds:

        def train_ppo(report: Report, directory: Path, seed: int = seed) -> Params:
            return training.train_ppo(
                config, sft, prompts_of(posts.feedback, tokenizer, study), reward, tokenizer, study,
                seed=seed, report=report, directory=directory,
            )  # fmt: skip

        method("PPO", seed, {"ppo": asdict(study.ppo)}, train_ppo)

    def collect(report: Report) -> list[list[list[Summary]]]:
        return [
            training.write_and_score(
                config, sft, reward, tokenizer, prompts, study,
                temperature=temperature, seed=study.seed + 1, each=study.best_of[-1] if temperature else 1,
                report=report,
            )
            for temperature in study.temperatures
        ]  # fmt: skip

    inputs = {"samples": study.best_of[-1], "temperatures": list(study.temperatures)}
    candidates = keep.apart("candidates", inputs, collect)
    ordered = {name: summaries[name] for name in METHODS}
    pairs = sum(len(example.pairs) for example in compared)
    return Runs(posts, ordered, candidates, calibration["accuracy"], pairs)


def _preferences(study: Study, keep: _Keeper, config: Any, sft: Params, tokenizer: Any, posts: Posts) -> list[Any]:
    """Rated summaries: compared by people, or the SFT model's own, ordered by ROUGE against the reference."""
    if study.comparisons:
        return comparisons(study)

    def collect(report: Report) -> list[dict[str, Any]]:
        prompts = prompts_of(posts.feedback, tokenizer, study)
        written = training.summarise(
            config, sft, tokenizer, prompts, study,
            temperature=study.sampling_temperature, seed=study.seed, each=study.samples_per_post, report=report,
        )  # fmt: skip
        found = []
        for post, summaries in zip(posts.feedback, written, strict=True):
            own = [one for one in summaries if one["text"]]
            texts = [one["text"] for one in own]
            scores = evaluation.rouge(texts, [post.reference] * len(texts))
            found.append({
                "prompt": ask(post.document),
                "responses": [f" {text}" for text in texts],
                "ratings": [float(sum(values) / 3) for values in zip(*scores.values(), strict=True)],
                "finished": [one["finished"] for one in own],
            })  # fmt: skip
        return [record for record in found if len(record["responses"]) > 1]

    inputs = {"each": study.samples_per_post, "temperature": study.sampling_temperature}
    return list(keep("preferences", inputs, collect, JSON))
