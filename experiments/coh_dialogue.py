"""Chain of Hindsight on dialogues (Liu et al. 2023, arXiv 2302.02676, section 4.2): answers told by likelihood.

    python -m experiments.coh_dialogue --preset mini --output-dir runs/coh-dialogue
        SmolLM2-135M-Instruct and PIQA (a goal, the right way and the wrong one), packaged, written as a dialogue of one
        turn; the pretraining text is packaged IMDb reviews. Three seeds, two CPU cores, some 11 minutes.
        They leave no time for RLHF, a seed of which costs several of the other rows' (four, in coh_sentiment):
        --rlhf-seeds 0 1 2 adds that row, whose numbers were not tried out.
    python -m experiments.coh_dialogue --preset hh --output-dir runs/coh-dialogue-hh
        The same on 1,156 genuine rows of Anthropic-HH, where they lie beside the checkout (or --task.feedback FILE).
    python -m experiments.coh_dialogue --preset gpu --output-dir runs/coh-dialogue-gpu
        SmolLM2-360M-Instruct, whole, on Anthropic-HH from a hub; one GPU, an hour or two. It has not been run.
    python -m experiments.coh_dialogue --preset paper --output-dir runs/coh-dialogue-paper
        GPT-J 6B; Anthropic-HH, WebGPT and summarize_from_feedback comparisons, mixed by size, and pile-10k (a sample of
        the paper's Pile) from a hub; a TPU pod slice: nine rows of some 3e20 floating-point operations
        each, most of them on the pretraining text, a day a row on eight H100, and RLHF, some 1e20 (a million episodes,
        Huang et al. 2024, held at the 6 nats of Ziegler et al. 2019). Expected order of accuracies: CoH 81.2, without
        forgetful mask 79.6, C-SFT 78.8, RLHF 68.8, SFT 64.8, without pretraining term 60.8, base 43.8, SFT-U 42.3.
        One seed: nothing is decided by it. The updates pass over pile-10k some hundred times: --task.pretraining takes
        another text. Where a hub has a model as pickles alone (GPT-J, at one time), which are refused, --task.model
        takes a folder of safetensors. It has not been run.

The paper's table 2 is what people say of two pseudo-dialogues (every turn of the assistant said anew); here it is two
measures of their last turns, named where they stand, and OUTPUT_DIR/pairs.jsonl holds the first seed's outputs for
people (``jaxalign judge serve``) or another judge. Every stage is kept under OUTPUT_DIR/stages by the hash of what
it follows from: a second run continues. Every field of the preset is a flag (--help after --preset); --dry-run shows
them and the first batch.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments._command import Command, FirstBatch
from experiments._hindsight import Scale, Training
from experiments._hindsight_dialogue import Dialogue, DialogueTask
from experiments._hindsight_rlhf import RLHFTraining, rlhf_on_comparisons
from experiments._hindsight_study import Table, run_table
from experiments._hindsight_study import first_batch as batch_of
from experiments._stages import Stages


@dataclass(frozen=True, kw_only=True)
class DialogueTable(Table):
    """The numbers of one preset."""

    task: Dialogue = field(default_factory=Dialogue)
    """Where everything comes from."""
    rlhf: RLHFTraining = field(default_factory=RLHFTraining)
    """The RLHF row's numbers: a reward model of the same records, and PPO; layers, lengths as in ``training``."""


_MINI = DialogueTable(
    methods=("SFT", "C-SFT", "SFT-U", "CoH"),
    seeds=(0, 1, 2),
    training=Training(
        steps=20, outputs=16, learning_rate=3e-4, warmup_steps=4, frozen_layers=24, max_length=128,
        pretraining_batch_size=4,
    ),
    rlhf=RLHFTraining(  # as many outputs as the others in the reward model's updates, two fifths as many sampled
        target_kl=3.0, reward_steps=20, reward_prompts_per_step=8, reward_learning_rate=3e-4, updates=8, episodes=16,
        learning_rate=1.5e-4,
    ),
)  # fmt: skip

PRESETS = {
    "mini": _MINI,
    "hh": dataclasses.replace(
        _MINI,
        training=dataclasses.replace(_MINI.training, outputs=8, max_length=256),
        task=Dialogue(feedback=("hh-sample",), held_out=200),
    ),
    "gpu": DialogueTable(
        methods=("SFT", "C-SFT", "SFT-U", "CoH", "CoH, no forgetful mask", "CoH, no chain", "CoH, no pretraining term"),
        seeds=(0, 1, 2),
        rlhf_seeds=(0, 1, 2),
        training=Training(
            steps=300, outputs=64, learning_rate=5e-5, warmup_steps=30, max_length=512, pretraining_batch_size=64,
            pretraining_length=256,
        ),
        scale=Scale(dtype="bfloat16", accumulation=4),
        rlhf=RLHFTraining(
            target_kl=3.0, reward_steps=150, reward_prompts_per_step=32, reward_learning_rate=1e-5, updates=60,
            episodes=256, learning_rate=3e-6, kl_coefficient=0.1,
            scale=Scale(dtype="bfloat16", accumulation=4, remat="full"),
        ),
        task=Dialogue(
            model="HuggingFaceTB/SmolLM2-360M-Instruct", feedback=("Anthropic/hh-rlhf",),
            held_out_dataset="Anthropic/hh-rlhf", held_out=1000, spoken=200, max_new_tokens=64,
            sampling_batch=128, max_tokens=512,
        ),
    ),
    "paper": DialogueTable(
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
        task=Dialogue(
            model="EleutherAI/gpt-j-6b",
            feedback=(
                "Anthropic/hh-rlhf", "openai/webgpt_comparisons", "openai/summarize_from_feedback:comparisons",
            ),
            held_out_dataset="Anthropic/hh-rlhf",
            held_out=2000,
            max_tokens=1024,
            pretraining="NeelNanda/pile-10k",
            templates="paper",
        ),
    ),
}  # fmt: skip


def run(table: DialogueTable, output: Path, name: str) -> dict[str, Any]:
    """All stages, then the report."""
    console = Console()
    stages = Stages(output / "stages", console=console)
    training = table.training
    task = DialogueTask(table.task, training.pretraining_length)
    rlhf = rlhf_on_comparisons(task, table.rlhf, training.frozen_layers, training.max_length)
    return run_table(
        task, table, rlhf, stages, output, experiment="coh_dialogue", name=name,
        title="Chain of Hindsight on dialogues", console=console,
    )  # fmt: skip


def first_batch(table: DialogueTable) -> FirstBatch:
    """Of the last method and the first seed."""
    return batch_of(DialogueTask(table.task, table.training.pretraining_length), table)


main = Command(__doc__, "coh_dialogue", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
