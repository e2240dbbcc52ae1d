"""Chain of Hindsight on film reviews: every baseline and ablation of the paper, on a model's own rated samples.

The start model's samples to the openings of reviews are rated by a sentiment classifier (Algorithm 1: sample, rate,
freeze, train); each method of Liu et al. 2023 (arXiv 2302.02676) learns from them, and is then asked for a good review
of held-out openings. The score is the classifier's log-odds of positive, beside it a judge that saw none of its data.
Rows: Base, SFT, C-SFT, SFT-U, CoH, CoH without forgetful mask, without chain, without pretraining term, with the words
of feedback learnt too, and RLHF (a reward model of the same samples, all of them; PPO). Every update of every method
has the same number of outputs.

    python -m experiments.coh_sentiment --preset mini --output-dir runs/coh-sentiment
        SmolLM2-135M-Instruct (top six layers), packaged IMDb reviews, also as the pretraining text; two CPU cores,
        three seeds, about an hour and a half. Samples are cut at 24 tokens.
    python -m experiments.coh_sentiment --preset gpu --output-dir runs/coh-sentiment-gpu
        The whole of SmolLM2-135M-Instruct, thirty times the outputs, samples of 48 tokens: one GPU, an hour or two. It
        has not been run. No paper has this experiment, so there is no preset `paper`.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from: a second run continues, a killed one
repeats only the stage it died in. Every field of the preset is a flag (--help after --preset).
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments._command import Command, FirstBatch
from experiments._hindsight import METHODS, Scale, Training
from experiments._hindsight_reviews import LEAD, ReviewsTask
from experiments._hindsight_study import Table, run_table
from experiments._hindsight_study import first_batch as batch_of
from experiments._sentiment import Study
from experiments._sentiment_rlhf import RLHF
from experiments._stages import Stages
from jaxalign.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SentimentTable(Table):
    """The numbers of one preset."""

    study: Study
    """The sentiment study whose start model, openings, raters and reward model these are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rlhf_seeds and not self.study.rlhf.targets:
            raise InputError("--rlhf-seeds: without --study.rlhf.targets there is no RLHF")


PRESETS = {
    "mini": SentimentTable(
        methods=tuple(name for name in METHODS if name != "SFT on all"),
        seeds=(0, 1, 2),
        rlhf_seeds=(0, 1, 2),
        training=Training(
            steps=20, outputs=16, learning_rate=3e-4, warmup_steps=4, frozen_layers=24, max_length=128,
            pretraining_batch_size=4,
        ),
        study=Study(
            model="smollm2",
            lead=LEAD,
            prompts=256,
            held_out=128,
            samples_per_prompt=8,
            max_new_tokens=24,
            temperature=0.7,
            frozen_layers=24,
            rlhf=RLHF(
                targets=(3.0,), seeds=(0, 1, 2), seeds_at=3.0, reward_steps=24, reward_prompts_per_step=8,
                reward_learning_rate=3e-4, updates=8, episodes=32, learning_rate=1.5e-4,
            ),
        ),
    ),
    "gpu": SentimentTable(
        methods=tuple(name for name in METHODS if name != "SFT on all"),
        seeds=(0, 1, 2),
        rlhf_seeds=(0, 1, 2),
        training=Training(
            steps=150, outputs=64, learning_rate=5e-5, warmup_steps=15, max_length=192, pretraining_batch_size=64,
            pretraining_length=128,
        ),
        scale=Scale(dtype="bfloat16"),
        study=Study(
            model="smollm2",
            lead=LEAD,
            prompts=1024,
            held_out=512,
            samples_per_prompt=8,
            max_new_tokens=48,
            sampling_batch=512,
            temperature=0.7,
            rlhf=RLHF(
                targets=(3.0,), seeds=(0, 1, 2), seeds_at=3.0, reward_steps=150, reward_prompts_per_step=32,
                reward_learning_rate=1e-5, updates=60, episodes=256, learning_rate=3e-6,
            ),
        ),
    ),
}  # fmt: skip


def run(table: SentimentTable, output: Path, name: str) -> dict[str, Any]:
    """All stages, then the report."""
    console = Console()
    stages = Stages(output / "stages", console=console)
    task = ReviewsTask.load(table.study, stages, table.training.pretraining_length)
    return run_table(
        task, table, task.rlhf, stages, output, experiment="coh_sentiment", name=name,
        title="Chain of Hindsight on film reviews", console=console,
    )  # fmt: skip


def first_batch(table: SentimentTable) -> FirstBatch:
    """Of the last method and the first seed, from as many openings as an update takes."""
    count = table.training.outputs
    study = dataclasses.replace(table.study, prompts=count, held_out=1, rlhf=RLHF())
    with tempfile.TemporaryDirectory() as folder:
        task = ReviewsTask.load(study, Stages(folder, console=Console(quiet=True)), table.training.pretraining_length)
        return batch_of(task, table, f"of {count} openings, whose reviews were sampled for this")


main = Command(__doc__, "coh_sentiment", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
