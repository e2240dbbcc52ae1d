"""Controlled sentiment on film reviews: reward against KL, DPO and its baselines (Rafailov et al. 2023, section 6.1).

Prompts are the first 2-8 tokens of reviews, the reward is a sentiment classifier's log-odds; each training prefix is
sampled 4 times from the start model, all 6 pairs ordered by the reward are the preferences, and every method is
measured on held-out prefixes: reward, sequence-level KL to the start model (k1, and k3 beside it), and a judge of
another kind that saw none of the reward's data. From the same policies: win rates over the sampling temperature, every
two methods against each other, DPO without the weight of its gradient (the paper's "weighing is important"), and DPO
on another model's pairs ("can use other good data").

    python -m experiments.imdb_sentiment --preset mini --output-dir runs/demo-frontier      (make demo-frontier)
        A 0.85M-parameter model, packaged; two CPU cores, about 11 minutes. The runs of the figure and the ablations,
        three seeds where a claim is made. Expect DPO's frontier above those of Preferred-FT and Unlikelihood over 0 to
        6 nats of KL (against PPO and PPO-GT it is in every seed, and the intervals hold 0), Best-of-4's above DPO's;
        PPO's best reward, at more KL, above DPO's; other pairs to help; without the weight of DPO's gradient text that
        is less likely under the start model. The reward model orders .60 of the held-out preferences; text is garbled
        at this size: methods, not fluency.
    python -m experiments.imdb_sentiment --preset demo --output-dir runs/demo               (make demo)
        SmolLM2-135M-Instruct, packaged, its top six layers; two CPU cores, about 10 minutes after the install. DPO
        moves the judge up while the text stays fluent; few runs, no claim.
    python -m experiments.imdb_sentiment --preset gpu --output-dir runs/imdb-gpu
        SmolLM2-135M whole, the same lists of runs; one GPU, an hour or two. Not run yet.
    python -m experiments.imdb_sentiment --preset paper --output-dir runs/imdb-paper
        gpt2-large, stanfordnlp/imdb and a RoBERTa sentiment classifier from a hub, other pairs from gpt2; one
        accelerator with 80 GB (PPO, planned on an A100: 34 GiB and the reward model), days, nearly all of them PPO's
        12 runs of 400 x 1,024 samples. Not run yet. The paper's figure 2, left: DPO dominates every other method's
        frontier. DPO as there: RMSprop, 1e-6 after 150 steps, gradients clipped at 10; the other pairwise methods too.
        Not as there: its 25,000 prefixes are 11,000 (reviews are split into disjoint parts for SFT, judge and
        prompts), passed over once; its batch of 64 pairs is 11 prefixes with all their pairs, 66; SFT reads windows of
        40 words of 4,000 reviews, about twice, for its one pass over all; PPO's rate (AdamW, 3e-6) does not fall.

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from: a second run continues, a killed one
repeats only the stage it died in, and of a training run in `gpu` and `paper` what came after its last checkpoint, of
which there are ten. Every field of the preset is a flag (--help after --preset).
"""

from pathlib import Path

from rich.console import Console

from experiments import _sentiment_report as report_files
from experiments._command import Command
from experiments._hindsight import Scale
from experiments._results import Result
from experiments._sentiment import Ablations, Study, Sweep
from experiments._sentiment_rlhf import RLHF
from experiments._sentiment_runs import measure_start, methods, run_methods, stage_count
from experiments._sentiment_start import first_batch, prepare
from experiments._stages import Stages
from experiments.assets.prompts import REVIEW_REQUEST

TEMPERATURES = (0.0, 0.25, 0.5, 0.75, 1.0)

PRESETS = {
    "mini": Study(
        model="glassllm",
        prompts=512,
        held_out=128,
        held_out_samples=2,
        max_new_tokens=32,
        sampling_batch=256,
        sft_steps=150,
        steps=96,
        measure_every=32,
        dpo_betas=(0.05, 0.1, 1.0, 5.0),
        dpo_seeds=(0, 1, 2),
        dpo_seeds_at=0.05,
        preferred_ft_seeds=(0, 1, 2),
        unlikelihood_alphas=(0.05, 0.1, 0.5, 1.0),
        unlikelihood_seeds=(0, 1, 2),
        best_of_n=4,
        compare_at=(2.0, 4.0, 6.0),
        rlhf=RLHF(
            targets=(3.0, 6.0, 9.0, 12.0),
            seeds=(0, 1, 2),
            true_seeds=(0, 1, 2),
            seeds_at=12.0,
            reward_extra_prompts=1100,
            reward_steps=200,
            updates=20,
            early=(2, 3),
            episodes=64,
            learning_rate=6e-4,
            kl_horizon=64.0,
        ),
        sweep=Sweep(temperatures=TEMPERATURES),
        ablations=Ablations(unweighted_seeds=(0, 1, 2), other_seeds=(0, 1, 2)),
    ),
    "demo": Study(
        model="smollm2",
        chat=REVIEW_REQUEST,
        prompts=160,
        temperature=0.7,
        frozen_layers=24,
        steps=20,
        prompts_per_step=8,
        learning_rate=1.5e-4,
        warmup_steps=4,
        measure_every=20,
        dpo_betas=(0.1, 1.0),
    ),
    "gpu": Study(
        model="smollm2",
        prompts=1024,
        held_out_samples=4,
        max_new_tokens=48,
        sampling_batch=512,
        sft_steps=300,
        sft_learning_rate=1e-4,
        steps=60,
        learning_rate=2e-5,
        measure_every=15,
        dpo_betas=(0.05, 0.1, 1.0, 5.0),
        dpo_seeds=(0, 1, 2),
        dpo_seeds_at=0.05,
        preferred_ft_seeds=(0, 1, 2),
        unlikelihood_alphas=(0.05, 0.1, 0.5, 1.0),
        unlikelihood_seeds=(0, 1, 2),
        best_of_n=4,
        compare_at=(2.0, 4.0, 6.0),
        rlhf=RLHF(
            targets=(3.0, 6.0, 9.0, 12.0),
            seeds=(0, 1, 2),
            true_seeds=(0, 1, 2),
            seeds_at=12.0,
            reward_extra_prompts=1000,
            reward_learning_rate=3e-5,
            updates=60,
            episodes=256,
            learning_rate=2e-5,
            kl_horizon=640.0,
            scale=Scale(checkpoints=True),
        ),
        sweep=Sweep(temperatures=TEMPERATURES),
        ablations=Ablations(unweighted_seeds=(0, 1, 2), other_model="glassllm", other_seeds=(0, 1, 2)),
        scale=Scale(checkpoints=True),
    ),
    "paper": Study(
        model="gpt2-large",
        reviews="stanfordnlp/imdb",
        reward="siebert/sentiment-roberta-large-english",
        lead="",
        prompts=11_000,
        held_out=512,
        held_out_samples=2,
        max_new_tokens=48,
        sampling_batch=512,
        sft_steps=780,
        sft_learning_rate=1e-5,
        steps=1000,
        prompts_per_step=11,  # with all pairs of their samples 66: the paper's batch is 64 pairs
        learning_rate=1e-6,
        optimizer="rmsprop",
        warmup_steps=150,
        measure_every=100,
        dpo_betas=(0.05, 0.1, 1.0, 5.0),
        dpo_seeds=(0, 1, 2),
        dpo_seeds_at=0.05,
        preferred_ft_seeds=(0, 1, 2, 3),
        unlikelihood_alphas=(0.05, 0.1, 0.5, 1.0),
        unlikelihood_seeds=(0, 1, 2),
        best_of_n=4,
        compare_at=(2.0, 4.0, 6.0),
        rlhf=RLHF(
            targets=(3.0, 6.0, 9.0, 12.0),
            seeds=(0, 1, 2),
            true_seeds=(0, 1, 2),
            seeds_at=12.0,
            reward_steps=450,
            reward_prompts_per_step=64,
            reward_learning_rate=3e-6,
            updates=400,
            episodes=1024,
            ppo_epochs=4,
            learning_rate=3e-6,
            kl_horizon=10_000.0,
            scale=Scale(accumulation=16, remat="full", checkpoints=True),
        ),
        sweep=Sweep(temperatures=TEMPERATURES),
        ablations=Ablations(unweighted_seeds=(0, 1, 2), other_model="gpt2", other_seeds=(0, 1, 2)),
        scale=Scale(checkpoints=True),
    ),
}


def run(study: Study, output: Path, preset: str) -> Result:
    """All stages, then the report."""
    console = Console()
    runs = methods(study)
    stages = Stages(output / "stages", total=stage_count(study, runs), console=console)
    assets = prepare(study, stages)
    start = measure_start(study, stages, assets)
    results = run_methods(study, runs, stages, assets, console)
    return report_files.write(output, study, assets, stages, preset, start=start, results=results, console=console)


main = Command(__doc__, "imdb_sentiment", PRESETS, run, first_batch)

if __name__ == "__main__":
    main()
