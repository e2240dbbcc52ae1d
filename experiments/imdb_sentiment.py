"""Controlled sentiment on film reviews: reward against KL, DPO and its baselines (Rafailov et al. 2023, section 6.1).

Prompts are the first 2-8 tokens of reviews, the reward is a sentiment classifier's log-odds; each training prefix is
sampled 4 times from the start model, all 6 pairs ordered by the reward are the preferences, and every method is
measured on held-out prefixes: reward, sequence-level KL to the start model, and a judge of another kind that saw none
of the reward's data.

    python -m experiments.imdb_sentiment --preset smollm2 --output-dir runs/demo            (make demo)
        SmolLM2-135M-Instruct, packaged; two CPU cores, about 10 minutes after the install. DPO moves the judge up while
        the text stays fluent.
    python -m experiments.imdb_sentiment --preset glassllm --output-dir runs/demo-frontier  (make demo-frontier)
        A 0.85M-parameter model, packaged; two CPU cores, about half an hour. The frontier with every method: DPO lies
        above Preferred-FT, Unlikelihood and PPO with a learned reward, PPO with the true one above DPO from 6 nats on;
        text is garbled at this size, so it shows the methods, not fluency.
    python -m experiments.imdb_sentiment --preset paper --output-dir runs/imdb-paper
        gpt2-large, stanfordnlp/imdb and a RoBERTa sentiment classifier from a hub; one accelerator with 40 GB or more,
        hours. The paper's figure 2, left: DPO dominates every other method's frontier. (Its 25,000 prefixes are 11,000
        here: reviews are split into disjoint parts for SFT, judge and prompts.)

Every stage is kept under OUTPUT_DIR/stages by the hash of what it follows from: a second run continues, a killed one
repeats only the stage it died in. Every field of the preset is a flag (--help after --preset).
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments import _sentiment_report as report_files
from experiments._sentiment import Measurement, Method, Study, measure, shared_activations, train
from experiments._sentiment_rlhf import PPO, RLHF, train_ppo
from experiments._sentiment_start import prepare, reward_inputs
from experiments._stages import JSON, Stages
from experiments.assets.prompts import REVIEW_REQUEST
from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.recipes import PreferenceObjective

PRESETS = {
    "smollm2": Study(
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
    "glassllm": Study(
        model="glassllm",
        prompts=1024,
        held_out_samples=4,
        max_new_tokens=48,
        sampling_batch=256,
        sft_steps=300,
        steps=60,
        measure_every=15,
        dpo_betas=(0.05, 0.1, 1.0, 5.0),
        preferred_ft_seeds=(0, 1, 2),
        unlikelihood_alphas=(0.05, 0.1, 0.5, 1.0),
        best_of_n=4,
        compare_at=(2.0, 4.0, 6.0),
        rlhf=RLHF(targets=(3.0, 6.0, 9.0, 12.0), seeds=(0, 1, 2), reward_extra_prompts=1100),
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
        steps=680,
        learning_rate=1e-6,
        warmup_steps=150,
        measure_every=100,
        dpo_betas=(0.05, 0.1, 1.0, 5.0),
        preferred_ft_seeds=(0, 1, 2, 3),
        unlikelihood_alphas=(0.05, 0.1, 0.5, 1.0),
        best_of_n=4,
        compare_at=(2.0, 4.0, 6.0),
        rlhf=RLHF(
            targets=(3.0, 6.0, 9.0, 12.0),
            reward_steps=450,
            reward_prompts_per_step=64,
            reward_learning_rate=3e-6,
            updates=400,
            episodes=1024,
            ppo_epochs=4,
            learning_rate=3e-6,
            kl_horizon=10_000.0,
        ),
    ),
}


def methods(study: Study) -> list[Method]:
    """Every training run of the study."""

    def run(name: str, setting: str, *, seed: int = study.seed, **options: Any) -> Method:
        return Method(name, setting, PreferenceObjective(temperature=study.temperature, **options), seed)

    found = [run("DPO", f"beta {beta:g}", loss=("sigmoid",), beta=beta) for beta in study.dpo_betas]
    for seed in study.preferred_ft_seeds:
        setting = f"seed {seed}" if len(study.preferred_ft_seeds) > 1 else ""
        found.append(run("Preferred-FT", setting, seed=seed, loss=("preferred_ft",)))
    for alpha in study.unlikelihood_alphas:
        found.append(run("Unlikelihood", f"alpha {alpha:g}", loss=("unlikelihood",), unlikelihood_weight=alpha))
    rewards: tuple[tuple[str, Literal["learned", "true"]], ...] = (("PPO", "learned"), ("PPO-GT", "true"))
    for name, reward in rewards:
        for target in study.rlhf.targets:
            seeds = study.rlhf.seeds if target == study.rlhf.seeds_at else study.rlhf.seeds[:1]
            for seed in seeds:
                setting = f"KL {target:g}" + (f", seed {seed}" if len(seeds) > 1 else "")
                found.append(Method(name, setting, PPO(reward, target), study.seed + seed))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study of a preset and write its report."""
    import tyro

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS, default="smollm2")
    first.add_argument("--output-dir", type=Path)
    known, rest = first.parse_known_args(arguments)
    program = f"imdb_sentiment --preset {known.preset} --output-dir DIR"
    study = tyro.cli(Study, default=PRESETS[known.preset], args=rest, prog=program, description=__doc__)
    output = known.output_dir or Path("runs") / f"imdb-{known.preset}"
    run_study(study, output, name=known.preset)


def run_study(study: Study, output: Path, *, name: str) -> dict[str, Any]:
    """All stages, then the report; returns what the report says, as numbers."""
    console = Console()
    runs = methods(study)
    total = 5 + (study.sft_steps > 0) + len(runs)
    if study.rlhf.targets:
        total += 1 + bool(study.rlhf.reward_extra_prompts)
    stages = Stages(output / "stages", total=total, console=console)
    assets = prepare(study, stages)
    config, start, tokenizer, held_out = assets.config, assets.start, assets.tokenizer, assets.held_out
    raters = assets.raters
    start_measured = _measurement(
        stages,
        "start-measured",
        assets.sampled,
        lambda report: measure(
            config, start, None, tokenizer, held_out, raters, study, step=0, each=study.best_of_n, report=report
        ),
    )
    activated: list[Any] = []
    results: dict[Method, list[Measurement]] = {}
    for method in runs:

        def compute(report: Any, method: Method = method) -> tuple[list[dict[str, Any]], Any]:
            points: list[Measurement] = []

            def evaluate(step: int, policy: Any) -> None:
                report(step, study.rlhf.updates if isinstance(method.objective, PPO) else study.steps, "measuring")
                quiet = _Quiet()
                points.append(
                    measure(config, policy, start, tokenizer, held_out, raters, study, step=step, report=quiet)
                )

            if isinstance(method.objective, PPO):
                reward = assets.reward if method.objective.reward == "learned" else raters.reward
                assert reward is not None
                final, last = train_ppo(
                    config, start, assets.training, reward, method.objective, study, tokenizer,
                    seed=method.seed, evaluate=evaluate, report=report,
                )  # fmt: skip
                console.print(_ppo_line(method, last), highlight=False, markup=False)
            else:
                if not activated:  # only when a run is missing: computed once for all of them
                    console.print("activations of the frozen layers and reference log-probs, once for all runs")
                    activated.extend(shared_activations(config, start, assets.examples, study))
                final = train(config, start, activated, method, study, evaluate=evaluate, report=report)
            return [dataclasses.asdict(point) for point in points], final

        label = f"{method.name} {method.setting}".strip().replace(" ", "-").lower()
        own = {"method": dataclasses.asdict(method.objective), "seed": method.seed, "name": label}
        inputs = assets.inputs | own
        if isinstance(method.objective, PPO):
            inputs = assets.sampled | own | {"rlhf": _ppo_inputs(study), "frozen_layers": study.frozen_layers}
            if method.objective.reward == "learned":
                inputs |= {"reward model": reward_inputs(study)}
        first = method is runs[0]  # its model is kept, to go on with

        def save(folder: Path, result: tuple[list[dict[str, Any]], Any], first: bool = first) -> None:
            rows, final = result
            JSON.save(folder, rows)
            if first:
                models.save_pretrained(folder / "model", config, final, tokenizer)

        rows = stages.stage(label, inputs, compute, save, lambda folder: (JSON.load(folder), None))[0]
        results[method] = [Measurement(**row) for row in rows]
        if first:
            _link(output / "model", stages.folder(label, inputs) / "model")
    return report_files.write(
        output,
        study,
        name=name,
        start=start_measured,
        results=results,
        held_out=held_out,
        accuracy=assets.accuracy,
        reward_model=assets.calibration,
        console=console,
    )


class _Quiet:
    """A report that nobody reads: the stage already says that it measures."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        return None


def _ppo_inputs(study: Study) -> dict[str, Any]:
    """What decides a PPO run, beside its target, its seed and its reward."""
    apart = ("targets", "seeds", "seeds_at")
    values = dataclasses.asdict(study.rlhf).items()
    return {name: value for name, value in values if name not in apart and not name.startswith("reward_")}


def _ppo_line(method: Method, last: dict[str, float]) -> str:
    return (
        f"{method.name} {method.setting}: KL {last['objective/kl']:.2f} with coefficient "
        f"{last['objective/kl_coefficient']:.3f}, score {last['objective/scores']:.2f}, explained variance "
        f"{last['val/explained_variance']:.2f}, largest gap to the sampler {last['sampler/log_prob_gap_max']:.1e}"
    )


def _measurement(stages: Stages, name: str, known: dict[str, Any], compute: Any) -> Measurement:
    return Measurement(**stages.stage(name, known, lambda report: dataclasses.asdict(compute(report)), *JSON))


def _link(link: Path, target: Path) -> None:
    """``link`` leads to ``target``, wherever the output folder is moved to."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(target.relative_to(link.parent), target_is_directory=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"imdb_sentiment: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("imdb_sentiment: stopped; the same command goes on with the stage that was running", file=sys.stderr)
        sys.exit(130)
