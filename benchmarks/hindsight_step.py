"""What Chain of Hindsight's regularisers cost: a step with and without the forgetful mask and the pretraining term.

    python -m benchmarks.hindsight_step          GPT-2 shape of 4 layers of width 256, two CPU cores: 3 minutes

One process, the steps in turn; ratios of medians count, the machine may do other work. "temporaries" are those of the
compiled step; the pretraining text has as many rows, of the same length, every token of them learnt.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks._workload import EOS, VOCABULARY, gpt2, zipf_ids
from jaxalign import data, models, recipes, sharding, training
from jaxalign.recipes import HindsightObjective
from jaxalign.training import OptimizerConfig

VARIANTS = {
    "plain": {"forget_max_ratio": 0.0, "pretraining_weight": 0.0},
    "forgetful mask": {"forget_max_ratio": 0.05, "pretraining_weight": 0.0},
    "pretraining term": {"forget_max_ratio": 0.0},
    "both": {"forget_max_ratio": 0.05},
}


def chains(count: int, length: int, rng: np.random.Generator) -> list[data.Example]:
    """Sequences of ``length`` tokens of which the second and fourth quarter are outputs."""
    found = []
    for index in range(count):
        ids = zipf_ids(rng, length)
        ids[length // 2 - 1] = ids[-1] = EOS
        place = np.arange(length) // (length // 4) % 2 == 1
        found.append(data.answers_example([], [ids], record_id=index, supervised=[place], branched=False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = gpt2(options.size)
    params = models.init(config, jax.random.key(0))
    mesh = sharding.make_mesh()
    rng = np.random.default_rng(0)
    print(f"jax {jax.__version__}, {jax.default_backend()}, vocabulary {VOCABULARY}, {options.rows} rows of each\n")
    print("| tokens a row | step | relative time | relative temporaries |\n|---:|---|---:|---:|")
    for length in options.length:
        batch = data.make_batches(chains(options.rows, length, rng), batch_size=options.rows)[0]
        text = data.make_batches(
            [data.answers_example([], [zipf_ids(rng, length)], branched=False) for _ in range(options.rows)],
            batch_size=options.rows,
        )[0]
        steps: dict[str, Any] = {}
        for name, settings in VARIANTS.items():
            objective = HindsightObjective(**settings)
            whole = batch.replace(pretraining=text) if objective.pretraining_coefficient else batch
            steps[name] = _step(config, params, objective, whole, mesh)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(options.repeats):
            for name, (run, _) in steps.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
        plain = statistics.median(times["plain"])
        for name, (_, temporaries) in steps.items():
            ratio = statistics.median(times[name]) / plain
            print(f"| {length} | {name} | {ratio:.2f} | {temporaries / steps['plain'][1]:.2f} |")


def _step(config: Any, params: Any, objective: HindsightObjective, batch: Any, mesh: Any) -> tuple[Any, int]:
    made = recipes.hindsight_objective(config, objective)
    optimizer, _ = training.make_optimizer(OptimizerConfig(learning_rate=1e-5), 100)
    replicated = jax.tree.map(lambda _: sharding.replicated(mesh), params)
    layout = training.state_shardings(params, optimizer, mesh=mesh, shardings=replicated)
    step = training.make_train_step(made.loss, optimizer, mesh=mesh, state_shardings=layout)
    frozen: dict[str, Any] = {"base": {}, "reference": {}}
    placed = training.put_batch(batch, mesh)
    state = [training.create_state(params, optimizer, jax.random.key(0), mesh=mesh, shardings=replicated)]
    compiled = step.lower(state[0], frozen, placed).compile()

    def run() -> None:
        state[0], metrics = step(state[0], frozen, placed)
        jax.block_until_ready(metrics)

    run()
    return run, int(compiled.memory_analysis().temp_size_in_bytes)


if __name__ == "__main__":
    main()
