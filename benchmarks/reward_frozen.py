"""Reward models with frozen layers against whole ones: memory, speed, held-out accuracy.

    python -m benchmarks.reward_frozen                      (glassllm, the sentiment study's preferences, 3 seeds)
    python -m benchmarks.reward_frozen --shape smollm2      (random weights of SmolLM2-135M's shape: memory and speed)

glassllm: the preferences of ``benchmarks._study``, made as ``experiments.imdb_sentiment`` makes its own, read from
``--study`` (what is not there is computed and kept there), with its settings. The last eighth of the prefixes is the
test; the checkpoint is chosen by accuracy on the eighth before it. A seed decides the score head and the data's order.
smollm2: 8 pairs of 64 prompt and 64 answer tokens a step.

Every run is a process of its own, the kinds in turn. "cached": the frozen layers' activations are computed once, before
the first step (``cache_trunk``), otherwise in every step. Columns: median step, wall clock and CPU; what the process
held at most, and how much of it came with training; accuracy on the test's pairs, mean over seeds +- half of Student's
95 % interval; the difference to the whole model, pair by pair and seed by seed, with its bootstrap interval over
prefixes (the spread over seeds is not in that one).
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks._study import FOLDER
from benchmarks._workload import run

KINDS = {
    "glassllm": ("0", "2", "3", "3,cached"),
    "smollm2": ("0", "15", "24", "24,cached"),
}
LAYERS = {"glassllm": 4, "smollm2": 30}


def train(shape: str, kind: str, seed: int, steps: int, study: Path) -> dict[str, Any]:
    """One run in this process: its figures."""
    import jax
    import numpy as np

    from jaxalign import models, recipes
    from jaxalign.recipes import FitConfig, RewardObjective
    from jaxalign.training import OptimizerConfig

    frozen, cached = int(kind.split(",")[0]), kind.endswith("cached")
    groups: tuple[list, list, list]
    if shape == "glassllm":
        from benchmarks import _study

        assets = _study.load(study)
        config, params = assets.config, assets.start
        rows, rate = _study.STUDY.rlhf.reward_prompts_per_step, _study.STUDY.rlhf.reward_learning_rate
        examples = [*assets.more_examples, *assets.examples]
        part = len(examples) // 8
        groups = (examples[: -2 * part], examples[-2 * part : -part], examples[-part:])
        del assets
    else:
        config, rows, rate = smollm2(), 8, 3e-6
        params = models.init(config, jax.random.key(0))
        groups = (random_pairs(config.vocab_size, rows * steps), [], [])
    scored, tree = models.add_score_head(config, params, jax.random.key(seed))
    del params
    jax.block_until_ready(tree)
    fit = FitConfig(
        max_steps=steps,
        batch_size=rows,
        optimizer=OptimizerConfig(learning_rate=rate, schedule="linear", warmup_steps=10, clip_norm=1.0),
        frozen_layers=frozen,
        cache_trunk=cached,
        eval_every=max(1, steps // 8) if groups[1] else 0,
        seed=seed,
    )
    wall, cpu = [time.perf_counter()], [time.process_time()]

    def report(done: int, total: int, note: str) -> None:
        wall.append(time.perf_counter())
        cpu.append(time.process_time())

    before = resident()
    result = recipes.fit(
        scored,
        tree,
        groups[0],
        lambda model_config: recipes.reward_objective(model_config, RewardObjective()),
        fit,
        eval_examples=groups[1],
        keep_best="eval/rewards/accuracy" if groups[1] else None,
        report=report,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row: dict[str, Any] = {
        "bench": "reward_frozen", "shape": shape, "kind": kind, "seed": seed, "steps": result.step,
        "step_s": statistics.median(np.diff(wall)[2:]), "step_cpu_s": statistics.median(np.diff(cpu)[2:]),
        "first_step_s": wall[1] - wall[0], "peak_mb": peak, "training_mb": peak - before,
        "trainable": trainable(scored, tree, frozen), "loss": result.metrics["loss"],
    }  # fmt: skip
    if groups[2]:
        margins = recipes.reward_model.pair_margins(result.config, result.params, groups[2])
        row["right"] = np.where(margins == 0, 0.5, margins > 0).tolist()
        row["prefix"] = np.repeat(np.arange(len(groups[2])), [len(one.pairs) for one in groups[2]]).tolist()
        row["best_step"] = result.best_step
    return row


def trainable(config: Any, params: Any, frozen: int) -> int:
    """Parameters that train."""
    import jax

    from jaxalign import models

    return sum(leaf.size for leaf in jax.tree.leaves(models.freeze(config, params, frozen)[1]))


def smollm2() -> Any:
    """SmolLM2-135M's numbers."""
    from jaxalign import models

    return models.ModelConfig(
        vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, max_positions=2048,
        rope_theta=100000.0, tied_embeddings=True,
    )  # fmt: skip


def random_pairs(vocabulary: int, count: int) -> list[Any]:
    """Pairs of 64 prompt and 64 answer tokens."""
    import numpy as np

    from jaxalign import data

    rng = np.random.default_rng(0)

    def ids() -> list[int]:
        return rng.integers(0, vocabulary, 64).tolist()

    return [data.answers_example(ids(), [ids(), ids()], record_id=i, pairs=[(0, 1)]) for i in range(count)]


def resident() -> float:
    """MB of memory that the process holds now (Linux)."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


def table(shape: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, a line a kind; times and memory are medians over the runs."""
    whole = found[next(iter(found))]
    heads = ["frozen", "trainable", "step, s", "CPU s", "steps/s, relative", "CPU, relative", "peak, MB"]
    heads += ["with training, MB"]
    accuracy = "right" in whole[0]
    if accuracy:
        heads += ["accuracy", "difference"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]

    def median(rows: list[dict[str, Any]], name: str) -> float:
        return statistics.median(row[name] for row in rows)

    for kind, rows in found.items():
        layers, *cached = kind.split(",")
        name = "none" if layers == "0" else f"{layers} of {LAYERS[shape]} layers"
        cells = [
            ", ".join([name, *cached]),
            f"{rows[0]['trainable'] / 1e6:.2f}M",
            f"{median(rows, 'step_s'):.3f}",
            f"{median(rows, 'step_cpu_s'):.3f}",
            # Of the runs of one seed, which ran one after the other.
            f"{statistics.median(a['step_s'] / b['step_s'] for a, b in zip(whole, rows, strict=True)):.2f}",
            f"{statistics.median(b['step_cpu_s'] / a['step_cpu_s'] for a, b in zip(whole, rows, strict=True)):.2f}",
            f"{median(rows, 'peak_mb'):,.0f}",
            f"{median(rows, 'training_mb'):,.0f}",
        ]
        if accuracy:
            cells += _accuracy(rows, whole)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _accuracy(rows: list[dict[str, Any]], whole: list[dict[str, Any]]) -> list[str]:
    import numpy as np

    from benchmarks._study import over_seeds
    from jaxalign import evaluation

    own, others = (np.array([row["right"] for row in some]) for some in (rows, whole))
    mean, half = over_seeds(own.mean(axis=1).tolist())
    cells = [f"{mean:.3f} +- {half:.3f}"]
    if rows is whole:
        return [*cells, ""]
    found = evaluation.paired_bootstrap_difference(own.mean(axis=0), others.mean(axis=0), groups=rows[0]["prefix"])
    return [*cells, f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=KINDS, default="glassllm")
    parser.add_argument("--study", type=Path, default=FOLDER, help="folder of the study's run, read or filled")
    parser.add_argument("--steps", type=int, help="updates; default: 200 (glassllm), 8 (smollm2)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of every kind")
    parser.add_argument("--kinds", nargs="+", help="layers frozen, e.g. 0 2 2,cached; the first is what others divide")
    parser.add_argument("--one", help="run this kind with the seed --seeds here and print its figures")
    parser.add_argument("--rows", type=Path, help="also write every run's figures to this JSON lines file")
    args = parser.parse_args()
    steps = args.steps or {"glassllm": 200, "smollm2": 8}[args.shape]
    if args.one:
        print(json.dumps(train(args.shape, args.one, args.seeds, steps, args.study)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in args.kinds or KINDS[args.shape]}
    for seed in range(args.seeds):
        for kind, rows in found.items():
            command = [sys.executable, "-m", "benchmarks.reward_frozen", "--shape", args.shape, "--one", kind]
            rows.append(run([*command, "--seeds", str(seed), "--steps", str(steps), "--study", str(args.study)]))
            shown = {name: value for name, value in rows[-1].items() if name not in ("right", "prefix")}
            print(json.dumps(shown), file=sys.stderr, flush=True)
            if args.rows:
                with args.rows.open("a") as stream:
                    stream.write(json.dumps(rows[-1]) + "\n")
    print(f"{args.shape}, {steps} steps, {args.seeds} runs of every kind in turn:\n\n{table(args.shape, found)}")


if __name__ == "__main__":
    main()
