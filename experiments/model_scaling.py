"""Score against model size: Chain of Hindsight, RLHF, SFT and the base (Liu et al. 2023, arXiv 2302.02676, figure 5).

Models of one family and one tokenizer, from small to large; at every size each method learns the same preferences and
is then asked for good outputs to held-out prompts. The paper has Chain of Hindsight below its baselines at the smallest
sizes, above them from there on, and rising fastest.

    python -m experiments.model_scaling --preset mini --output-dir runs/model-scaling
        Four models of 40 to 670 thousand parameters, trained from scratch on packaged IMDb reviews, then on
        their own samples, rated by a sentiment model and scored by a judge that saw none of its data; two CPU cores,
        three seeds, some 6 minutes. Text is garbled at this size: it shows sentiment, not fluency.
    python -m experiments.model_scaling --preset gpu --output-dir runs/model-scaling-gpu
        Pythia 70M to 1B from a hub, packaged reviews; one GPU with 80 GB, some hours. It has not been run.
    python -m experiments.model_scaling --preset paper --output-dir runs/model-scaling-paper
        Pythia 410M, 1B and 2.8B, and GPT-J 6B (the paper's largest; its smaller ones are not named); WebGPT,
        Anthropic-HH and summarize_from_feedback comparisons, the score is ROUGE-L on TL;DR; a TPU pod slice, days.
        One seed: no claim is decided by it. It has not been run.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from: a second run continues. Every field of
the preset is a flag (--help after --preset).
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import _results
from experiments._command import Command, FirstBatch
from experiments._hindsight import BASE, METHODS, RLHF_ROW, Scale, Training, train, with_trunk
from experiments._hindsight_reviews import LEAD
from experiments._hindsight_rlhf import RLHFTraining
from experiments._hindsight_summaries import Summaries
from experiments._hindsight_tasks import Measured
from experiments._model_sizes import count_parameters
from experiments._results import Result
from experiments._scaling_result import Size, result_of
from experiments._scaling_tasks import ReviewsLadder, Rung, SummariesLadder
from experiments._sentiment import Study
from experiments._sentiment_rlhf import RLHF
from experiments._stages import JSON, Report, Stages, digest
from jaxalign import data
from jaxalign.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """The numbers of one preset."""

    sizes: tuple[str, ...]
    """From small to large: "WIDTHxLAYERS" of the packaged family, untrained, or folders or hub ids of one family."""
    methods: tuple[str, ...] = ("SFT", "CoH")
    """Beside RLHF and the base."""
    training: Training = field(default_factory=Training)
    """One run's numbers, of the methods that are not RLHF."""
    scale: Scale = field(default_factory=Scale)
    """How those are computed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds of all methods; a size has one base."""

    def __post_init__(self) -> None:
        if len(set(self.sizes)) < max(2, len(self.sizes)):
            raise InputError("--sizes: name at least two, each once")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("--seeds: name at least one, each once")
        for name in self.methods:
            if name not in METHODS:
                raise InputError(f"--methods: there is no method {name!r}; there are: {', '.join(METHODS)}")
        if "CoH" not in self.methods or "SFT" not in self.methods:
            raise InputError("--methods: the claims are of CoH and SFT")


@dataclass(frozen=True, kw_only=True)
class ReviewsScaling(Scaling):
    """On film reviews."""

    ladder: ReviewsLadder
    """What every size is trained and measured on."""


@dataclass(frozen=True, kw_only=True)
class SummariesScaling(Scaling):
    """On summaries."""

    ladder: SummariesLadder
    """What every size is trained and measured on."""


Preset = ReviewsScaling | SummariesScaling


PRESETS: dict[str, Preset] = {
    "mini": ReviewsScaling(
        sizes=("32x1", "48x2", "80x2", "128x3"),
        ladder=ReviewsLadder(
            study=Study(
                model="", lead=LEAD, prompts=256, held_out=256, samples_per_prompt=4, max_new_tokens=32,
                sampling_batch=256, sft_steps=150, sft_learning_rate=4e-3,
                rlhf=RLHF(
                    targets=(6.0,), seeds_at=6.0, reward_steps=40, reward_prompts_per_step=16, updates=10,
                    episodes=128, learning_rate=6e-4, kl_coefficient=0.1,
                ),
            )
        ),
        training=Training(
            steps=32, outputs=32, learning_rate=2e-3, warmup_steps=4, max_length=128, pretraining_batch_size=4,
        ),
    ),
    "gpu": ReviewsScaling(
        sizes=tuple(f"EleutherAI/pythia-{size}" for size in ("70m", "160m", "410m", "1b")),
        ladder=ReviewsLadder(
            study=Study(
                model="", lead=LEAD, prompts=1024, held_out=512, samples_per_prompt=4, max_new_tokens=48,
                sampling_batch=512, sft_steps=300, sft_length=96, sft_learning_rate=2e-5,
                rlhf=RLHF(
                    targets=(6.0,), seeds_at=6.0, reward_steps=150, reward_prompts_per_step=32,
                    reward_learning_rate=1e-5, updates=80, episodes=256, learning_rate=3e-6, kl_coefficient=0.1,
                    scale=Scale(dtype="bfloat16", accumulation=4, remat="full"),
                ),
            )
        ),
        training=Training(
            steps=200, outputs=64, learning_rate=2e-5, warmup_steps=20, max_length=256, pretraining_batch_size=32,
        ),
        scale=Scale(dtype="bfloat16"),
    ),
    "paper": SummariesScaling(
        sizes=(
            "EleutherAI/pythia-410m", "EleutherAI/pythia-1b", "EleutherAI/pythia-2.8b", "EleutherAI/gpt-j-6b",
        ),
        ladder=SummariesLadder(
            task=Summaries(
                feedback=(
                    "openai/summarize_from_feedback:comparisons", "Anthropic/hh-rlhf", "openai/webgpt_comparisons",
                ),
                held_out_dataset="CarperAI/openai_summarize_tldr", held_out=1000, max_new_tokens=64,
                pretraining="NeelNanda/pile-10k", templates="paper",
            ),
            rlhf=RLHFTraining(
                target_kl=6.0, reward_steps=500, reward_prompts_per_step=256, reward_learning_rate=1e-5, updates=1000,
                episodes=512, ppo_epochs=4, learning_rate=3e-6, kl_coefficient=0.05, kl_horizon=10_000.0,
                scale=Scale(dtype="bfloat16", accumulation=8, remat="full", checkpoints=True),
            ),
        ),
        training=Training(
            steps=4000, outputs=1024, learning_rate=1e-5, warmup_steps=100, max_length=1024,
            pretraining_batch_size=2048, pretraining_length=1024,
        ),
        scale=Scale(dtype="bfloat16", accumulation=64, remat="full", checkpoints=True),
        seeds=(0,),
    ),
}  # fmt: skip


def run(scaling: Preset, output: Path, name: str) -> Result:
    """All sizes, then the result."""
    stages = Stages(output / "stages", console=Console())
    sizes = []
    for size in scaling.sizes:
        rung = scaling.ladder.rung(size, stages, scaling.training.pretraining_length)
        rows = _run_size(scaling, size, rung, stages, output)
        sizes.append(Size(name=size, parameters=count_parameters(rung.task.start), rows=rows, score=rung.score))
    result = result_of(sizes, output, preset=name, setting=_setting(scaling), seconds=stages.seconds)
    path = _results.save(output, result)
    stages.console.print(f"written to {path}", highlight=False, markup=False)
    return result


def _run_size(scaling: Scaling, size: str, rung: Rung, stages: Stages, output: Path) -> dict[str, list[Measured]]:
    """Every method with every seed."""
    task = rung.task
    known: dict[str, Any] = dict(task.inputs) | {"records": digest([dict(record) for record in task.records])}
    known["templates"] = data.load_templates(task.templates).fingerprint()
    rows: dict[str, list[Measured]] = {}
    text: list[data.Example] = []

    def kept(method: str, seed: int, inputs: dict[str, Any], compute: Callable[[Report, Path], Measured]) -> None:
        name = Path(size).name if Path(size).is_dir() else size  # its weights are among the inputs, wherever it lies
        label = f"{name}-{method}-seed-{seed}".lower().replace("/", "-").replace(" ", "-")
        inputs = known | inputs | {"seed": seed}
        directory = output / "runs" / stages.folder(label, inputs).name  # other inputs, other checkpoints
        found = stages.stage(label, inputs, lambda report: compute(report, directory), *JSON)
        rows.setdefault(method, []).append(found)

    kept(BASE, 0, {}, lambda report, _: rung.measure(task.start, None, seed=0, report=report))
    for seed in scaling.seeds:
        for method in scaling.methods:

            def compute(report: Report, directory: Path, method: str = method, seed: int = seed) -> Measured:
                if not text:  # only when a run is missing: computed once for all of them
                    text.extend(with_trunk(task.config, task.start, task.text, scaling.training))
                params, prompts = train(
                    task.config, task.start, task.records, text, task.tokenizer, METHODS[method], scaling.training,
                    templates=task.templates, kind=task.kind, seed=seed, report=report, scale=scaling.scale,
                    directory=scaling.scale.kept(directory),
                )  # fmt: skip
                return rung.measure(params, prompts, seed=seed, report=report)

            form = [METHODS[method].form, METHODS[method].objective]
            inputs = {"method": form, "training": asdict(scaling.training)} | scaling.scale.inputs
            kept(method, seed, inputs, compute)

        def compute_rlhf(report: Report, directory: Path, seed: int = seed) -> Measured:
            policy = rung.rlhf.policy(seed=seed, report=report, directory=directory)
            return rung.measure(policy, None, seed=seed, report=report)

        kept(RLHF_ROW, seed, {"rlhf": dict(rung.rlhf.inputs)}, compute_rlhf)
    return rows


def _setting(scaling: Preset) -> str:
    ladder, training = scaling.ladder, scaling.training
    what = f"{', '.join(scaling.sizes)}; {training.steps} updates of {training.outputs} outputs each"
    if isinstance(ladder, ReviewsLadder):
        study = ladder.study
        return (
            f"{what}; {study.prompts} openings of {study.reviews} film reviews with {study.samples_per_prompt} rated "
            f"samples of every size's own, after {study.sft_steps} steps on reviews; {study.held_out} held-out openings"
        )
    return f"{what}; {', '.join(ladder.task.feedback) or 'packaged XSum'}; {ladder.task.held_out} held-out documents"


def first_batch(scaling: Preset) -> FirstBatch:
    """The chains of the smallest size's first update."""
    ladder, training, count = scaling.ladder, scaling.training, scaling.training.outputs // METHODS["CoH"].outputs
    note = f"Chain of Hindsight, {scaling.sizes[0]}, seed {scaling.seeds[0]}"
    if isinstance(ladder, ReviewsLadder):
        ladder = replace(ladder, study=replace(ladder.study, prompts=count, held_out=1, sft_steps=0, rlhf=RLHF()))
        note += f"; of {count} openings, sampled for this from the model before its training on reviews"
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(folder, console=Console(quiet=True))
        task = ladder.rung(scaling.sizes[0], stages, training.pretraining_length).task
    form = data.ChainFormat(templates=task.templates, kind=task.kind, **METHODS["CoH"].form)
    truncation = data.Truncation(max_length=training.max_length, prompt="keep_end")
    seed = scaling.seeds[0]
    chains, _ = data.build_chains(
        task.records, task.tokenizer, form, truncation=truncation, seed=seed, on_bad_row="skip"
    )
    entries = data.make_batches(chains, batch_size=count, seed=seed).plan.entries(0)
    return FirstBatch([chains.draw(*entry) for row in entries for entry in row], task.tokenizer, note)


main = Command(__doc__, "model_scaling", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
