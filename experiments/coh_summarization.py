"""Chain of Hindsight on summaries (Liu et al. 2023, arXiv 2302.02676, section 4.2, table 1): ROUGE of what is written.

    python -m experiments.coh_summarization --preset mini --output-dir runs/coh-summarization
        SmolLM2-135M-Instruct and XSum, packaged; the feedback is ROUGE-L against the reference, of the reference and
        two summaries of its own; the pretraining text is packaged IMDb reviews. Three seeds, two CPU cores, some 11
        minutes. They leave no time for RLHF, a seed of which costs several of the other rows' (four, in coh_sentiment):
        --rlhf-seeds 0 1 2 adds that row, whose numbers were not tried out.
    python -m experiments.coh_summarization --preset gpu --output-dir runs/coh-summarization-gpu
        SmolLM2-360M-Instruct, whole, on all the packaged articles; one GPU, an hour or two. It has not been run.
    python -m experiments.coh_summarization --preset paper --output-dir runs/coh-summarization-paper
        GPT-J 6B; WebGPT, Anthropic-HH and summarize_from_feedback comparisons, mixed by size, and pile-10k (a sample of
        the paper's Pile) from a hub; a TPU pod slice: nine rows of some 3e20 floating-point operations
        each, most of them on the pretraining text, a day a row on eight H100, and RLHF, some 1e20 (a million episodes,
        Huang et al. 2024, held at the 6 nats of Ziegler et al. 2019). Expected order of ROUGE-L: CoH 27.5, without
        forgetful mask 26.7, RLHF 25.5, C-SFT 25.4, SFT 24.9, without pretraining term 22.5, base 20.2, SFT-U 19.6.
        One seed: nothing is decided by it. The updates pass over pile-10k some hundred times: --task.pretraining takes
        another text. Where a hub has a model as pickles alone (GPT-J, at one time), which are refused, --task.model
        takes a folder of safetensors. It has not been run.

The scores are ROUGE. The paper's table 1 is what people say of two summaries; here it is three measures of them
(accuracy, coherence, coverage), named where they stand, and OUTPUT_DIR/pairs.jsonl holds the first seed's outputs for
people (``jaxalign judge serve``) or another judge. Every stage is kept under OUTPUT_DIR/stages by the hash of what it
follows from: a second run continues. Every field of the preset is a flag (--help after --preset); --dry-run shows them
and the first batch.
"""

import dataclasses
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments._command import Command, FirstBatch
from experiments._hindsight import Scale, Training
from experiments._hindsight_rlhf import RLHFTraining, rlhf_on_comparisons
from experiments._hindsight_study import Table, run_table
from experiments._hindsight_study import first_batch as batch_of
from experiments._hindsight_summaries import Summaries, SummariesTask
from experiments._stages import Stages


@dataclass(frozen=True, kw_only=True)
class SummarizationTable(Table):
    """The numbers of one preset."""

    task: Summaries = field(default_factory=Summaries)
    """Where everything comes from."""
    rlhf: RLHFTraining = field(default_factory=RLHFTraining)
    """The RLHF row's numbers: a reward model of the same records, and PPO; layers, lengths as in ``training``."""


PRESETS = {
    "mini": SummarizationTable(
        methods=("SFT", "C-SFT", "SFT-U", "CoH"),
        seeds=(0, 1, 2),
        # An instruct model's first wish after the words of feedback is to end the turn: sixteen updates do not unlearn
        # it, and most summaries are empty.
        training=Training(
            steps=32, outputs=6, learning_rate=5e-4, warmup_steps=4, frozen_layers=24, max_length=160,
            pretraining_batch_size=2,
        ),
        rlhf=RLHFTraining(  # as many outputs as the others in the reward model's updates, two thirds as many sampled
            target_kl=3.0, reward_steps=16, reward_prompts_per_step=4, reward_learning_rate=3e-4, updates=8,
            episodes=16, learning_rate=1.5e-4,
        ),
        task=Summaries(document_words=32, max_new_tokens=24),
    ),
    "gpu": SummarizationTable(
        methods=("SFT", "C-SFT", "SFT-U", "CoH", "CoH, no forgetful mask", "CoH, no chain", "CoH, no pretraining term"),
        seeds=(0, 1, 2),
        rlhf_seeds=(0, 1, 2),
        training=Training(
            steps=150, outputs=64, learning_rate=5e-5, warmup_steps=15, max_length=768, pretraining_batch_size=64,
            pretraining_length=256,
        ),
        scale=Scale(dtype="bfloat16", accumulation=4),
        rlhf=RLHFTraining(
            target_kl=3.0, reward_steps=150, reward_prompts_per_step=32, reward_learning_rate=1e-5, updates=60,
            episodes=256, learning_rate=3e-6, kl_coefficient=0.1,
            scale=Scale(dtype="bfloat16", accumulation=4, remat="full"),
        ),
        task=Summaries(
            model="HuggingFaceTB/SmolLM2-360M-Instruct", held_out=200, documents=760, document_words=200,
            samples_per_document=4, max_new_tokens=48, sampling_batch=128,
        ),
    ),
    "paper": SummarizationTable(
        rlhf_seeds=(0,),
        training=Training(
            steps=4000, outputs=1024, learning_rate=1e-5, warmup_steps=100, max_length=1024,
            pretraining_batch_size=2048, pretraining_length=1024,
        ),
        scale=Scale(dtype="bfloat16", accumulation=64, remat="full", checkpoints=True),
        rlhf=RLHFTraining(
            target_kl=6.0, reward_steps=1000, reward_prompts_per_step=256, reward_learning_rate=1e-5, updates=1953,
            episodes=512, ppo_epochs=4, learning_rate=3e-6, kl_coefficient=0.05, kl_horizon=10_000.0,
            scale=Scale(dtype="bfloat16", accumulation=8, remat="full", checkpoints=True),
        ),
        task=Summaries(
            model="EleutherAI/gpt-j-6b",
            feedback=(
                "openai/summarize_from_feedback:comparisons", "Anthropic/hh-rlhf", "openai/webgpt_comparisons",
            ),
            held_out_dataset="CarperAI/openai_summarize_tldr",
            held_out=1000,
            max_new_tokens=64,
            pretraining="NeelNanda/pile-10k",
            templates="paper",
        ),
    ),
}  # fmt: skip


def run(table: SummarizationTable, output: Path, name: str) -> dict[str, Any]:
    """All stages, then the report."""
    console = Console()
    stages = Stages(output / "stages", console=console)
    training = table.training
    task = SummariesTask(table.task, stages, training.pretraining_length)
    rlhf = rlhf_on_comparisons(task, table.rlhf, training.frozen_layers, training.max_length)
    return run_table(
        task, table, rlhf, stages, output, experiment="coh_summarization", name=name,
        title="Chain of Hindsight on summaries", console=console,
    )  # fmt: skip


def first_batch(table: SummarizationTable) -> FirstBatch:
    """Of the last method and the first seed; where summaries are sampled, of as many documents as an update takes."""
    settings, note = table.task, ""
    if not settings.feedback:
        settings = dataclasses.replace(settings, documents=table.training.outputs)
        note = f"of {settings.documents} documents, whose summaries were sampled for this"
    with tempfile.TemporaryDirectory() as folder:
        stages = Stages(folder, console=Console(quiet=True))
        return batch_of(SummariesTask(settings, stages, table.training.pretraining_length), table, note)


main = Command(__doc__, "coh_summarization", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
