"""What alignment without reinforcement learning saves: DPO, Chain of Hindsight and PPO brought to one judge score.

All three start from one model, learn from the same rated samples of it, and stop at the first measurement at which a
judge, who saw none of the reward's data, gives their continuations of held-out openings the target. The table says what
that took: stages, models held, trained parameters, tokens generated and trained on, memory, time. Time is the median
update's, times the updates: without compilation and without the judge. Memory is that of the arrays which a run has on
the devices after an update; what a step holds while it computes is not in it.

    python -m experiments.rlhf_without_rl --preset mini --output-dir runs/rlhf-without-rl
        The packaged 0.85M-parameter model on packaged IMDb reviews; two CPU cores, three seeds, some 6 minutes. Text is
        garbled at this size: it shows costs, not fluency. Expected: DPO and PPO reach the target, PPO in several times
        DPO's time, and it is the only one that generates. Chain of Hindsight does not get there: so small a model does
        not read the words of feedback (coh_sentiment has one that does); its costs are of all its updates, as is said.
    python -m experiments.rlhf_without_rl --preset gpu --output-dir runs/rlhf-without-rl-gpu
        SmolLM2-135M-Instruct, all layers, packaged data; one GPU, about an hour. It has not been run.
    python -m experiments.rlhf_without_rl --preset paper --output-dir runs/rlhf-without-rl-paper
        gpt2-large, stanfordnlp/imdb and a RoBERTa sentiment classifier from a hub, as the controlled-sentiment study of
        Rafailov et al. 2023, whose optimizer DPO has (imdb_sentiment says what is not as there); one accelerator with
        80 GB, a day or two. It has not been run.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from: a second run continues, in `gpu` and
`paper` also a training run, from the last of its ten checkpoints. Every field of the preset is a flag (--help after
--preset).
"""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import _results
from experiments._alignment_cost import PIPELINES, Comparison, Pipeline, Run, inputs_of, run_pipeline
from experiments._alignment_cost_result import Shared, result_of
from experiments._command import Command, FirstBatch
from experiments._hindsight import Scale, Training
from experiments._hindsight_reviews import LEAD, ReviewsTask
from experiments._results import Result
from experiments._sentiment import Study
from experiments._sentiment_rlhf import RLHF
from experiments._sentiment_start import PREFERENCES
from experiments._stages import JSON, Report, Stages, digest
from jaxalign import data

PRESETS = {
    "mini": Comparison(
        study=Study(
            model="glassllm", lead=LEAD, prompts=1536, held_out=256, samples_per_prompt=4, max_new_tokens=32,
            sampling_batch=256, sft_steps=150, steps=48, prompts_per_step=16, learning_rate=5e-4, warmup_steps=4,
            rlhf=RLHF(
                reward_steps=200, reward_prompts_per_step=16, updates=30, episodes=128, points=15,
                learning_rate=6e-4, kl_coefficient=0.1,
            ),
        ),
        hindsight=Training(
            steps=96, outputs=32, learning_rate=1e-3, warmup_steps=4, max_length=128, pretraining_batch_size=4,
        ),
        target=0.54, measure_every=8,
    ),
    "gpu": Comparison(
        study=Study(
            model="smollm2", lead=LEAD, prompts=1024, held_out=512, samples_per_prompt=4, max_new_tokens=32,
            temperature=0.7, sampling_batch=512, steps=128, prompts_per_step=16, learning_rate=1e-5, warmup_steps=10,
            rlhf=RLHF(
                reward_steps=128, reward_prompts_per_step=32, reward_learning_rate=1e-5, updates=100, episodes=256,
                learning_rate=3e-6, kl_coefficient=0.1, points=25, scale=Scale(checkpoints=True),
            ),
            scale=Scale(checkpoints=True),
        ),
        hindsight=Training(
            steps=128, outputs=32, learning_rate=2e-5, warmup_steps=10, max_length=160, pretraining_batch_size=16,
        ),
        scale=Scale(checkpoints=True),
    ),
    "paper": Comparison(
        study=Study(
            model="gpt2-large", reviews="stanfordnlp/imdb", reward="siebert/sentiment-roberta-large-english", lead=LEAD,
            prompts=11_000, held_out=512, samples_per_prompt=4, max_new_tokens=48, sampling_batch=512, sft_steps=780,
            sft_learning_rate=1e-5, steps=1000, prompts_per_step=11, learning_rate=1e-6, optimizer="rmsprop",
            warmup_steps=150,
            rlhf=RLHF(
                reward_steps=450, reward_prompts_per_step=64, reward_learning_rate=3e-6, updates=400, episodes=1024,
                ppo_epochs=4, learning_rate=3e-6, kl_horizon=10_000.0, points=40,
                scale=Scale(accumulation=16, remat="full", checkpoints=True),
            ),
            scale=Scale(checkpoints=True),
        ),
        hindsight=Training(
            steps=1000, outputs=64, learning_rate=1e-5, warmup_steps=100, max_length=256, pretraining_batch_size=64,
        ),
        target=0.8, measure_every=20, scale=Scale(accumulation=4, checkpoints=True),
    ),
}  # fmt: skip


def run(comparison: Comparison, output: Path, name: str) -> Result:
    """All runs, in turn seed by seed, then the result."""
    stages = Stages(output / "stages", console=Console())
    task = _task(comparison, stages)
    known = dict(task.inputs) | {"records": digest([dict(record) for record in task.records])}
    known["templates"] = data.load_templates(task.templates).fingerprint()
    start = stages.stage(
        "start-judged", known, lambda report: task.rated(task.start, None, seed=0, report=report)["judge"], *JSON
    )
    runs: list[Run] = []
    for seed in comparison.seeds:
        for pipeline in PIPELINES:
            label = f"{pipeline.name.lower()}-seed-{seed}"

            def compute(
                report: Report, directory: Path, pipeline: Pipeline = pipeline, seed: int = seed
            ) -> dict[str, object]:
                return asdict(run_pipeline(task, comparison, pipeline, seed=seed, directory=directory, report=report))

            inputs = known | inputs_of(comparison) | {"pipeline": pipeline.name, "seed": seed}
            runs.append(Run.from_json(stages.trained(label, inputs, compute, *JSON)))
    samples = comparison.study.prompts * comparison.study.samples_per_prompt
    shared = Shared(samples=samples, tokens=_sampled(task), seconds=stages.took[PREFERENCES])
    result = result_of(comparison, runs, start, shared, output, preset=name, seconds=stages.seconds)
    path = _results.save(output, result)
    stages.console.print(f"written to {path}", highlight=False, markup=False)
    return result


def first_batch(comparison: Comparison) -> FirstBatch:
    """DPO's first update, sampled for this from the model as it is published."""
    study = replace(comparison.study, prompts=comparison.study.prompts_per_step, held_out=1, sft_steps=0)
    with tempfile.TemporaryDirectory() as folder:
        task = _task(replace(comparison, study=study), Stages(folder, console=Console(quiet=True)))
    note = "of DPO: an opening, its samples, all their pairs; sampled for this from the model as it is published"
    return FirstBatch(task.assets.examples, task.tokenizer, note)


def _sampled(task: ReviewsTask) -> int:
    """Tokens of the samples that preferences are made of; prefixes whose samples all tie have none."""
    return sum(int(np.sum(example.branch > 0)) for example in task.assets.examples)


def _task(comparison: Comparison, stages: Stages) -> ReviewsTask:
    # No target: the study's own reward model would be of one seed; every run of PPO here trains its own.
    study = replace(comparison.study, rlhf=replace(comparison.study.rlhf, targets=()))
    return ReviewsTask.load(study, stages, comparison.hindsight.pretraining_length)


main = Command(__doc__, "rlhf_without_rl", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
