"""DPO train steps on random text, beside TRL on the same workload, in turn.

    python -m benchmarks.dpo_step --size tiny
    python -m benchmarks.dpo_step --size tiny --peer-python PEER/bin/python --peer-script trl_dpo.py --rounds 3

Workload: GPT-2 shape ("tiny" 4 layers of width 256, "small" 12 of 768), vocabulary 50,257, 8 pairs of 64 prompt and
64 completion tokens, float32, AdamW, the reference scored in the step. Tokens are counted as a peer without shared
prompts processes them: (prompt + completion) x 2 x pairs = 2,048 a step, so that tokens/s compares the same work done.
With a peer, both run in turn as whole processes in the same environment (set GLIBC_TUNABLES for both or for neither),
and what is printed is the ratio of medians over the rounds.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any, Literal

from benchmarks._workload import EOS, SIZES, gpt2, run, zipf_ids


def measure(
    size: str, steps: int, warmup: int, pairs: int, prompt: int, completion: int, layout: Literal["shared", "two_rows"]
) -> dict[str, object]:
    """Run the steps in this process and return one row of figures."""
    import jax
    import numpy as np

    from jaxalign import data, models, sharding, training
    from jaxalign.recipes import PreferenceObjective, preference_objective

    config = gpt2(size)
    mesh = sharding.make_mesh()
    params = models.init(config, jax.random.key(0))
    layout_of = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    objective = preference_objective(config, PreferenceObjective(beta=0.1))
    optimizer, schedule = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-6), steps)
    state_layout = training.state_shardings(params, optimizer, mesh=mesh, shardings=layout_of)
    state = training.create_state(params, optimizer, jax.random.key(1), mesh=mesh, shardings=layout_of)
    frozen = {"base": {}, "reference": params}
    step = training.make_train_step(
        objective.loss, optimizer, mesh=mesh, state_shardings=state_layout, schedule=schedule
    )

    rng = np.random.default_rng(0)

    def ids(length: int) -> np.ndarray:
        return zipf_ids(rng, length)

    def batch() -> data.Batch:
        rows = [[preference_example(ids(prompt), ids(completion), ids(completion))] for _ in range(pairs)]
        longest = prompt + completion if layout == "two_rows" else prompt + 2 * completion
        targets = completion if layout == "two_rows" else 2 * completion
        return data.collate(
            rows, data.BatchShape(tokens=longest, targets=targets, pairs=1, sequences=2, answers=2, layout=layout)
        )

    batches = [batch() for _ in range(steps)]
    times, first_loss = [], None
    for one in batches:
        start = time.perf_counter()
        state, metrics = step(state, frozen, training.put_batch(one, mesh))
        value = float(metrics["loss"][0])
        times.append(time.perf_counter() - start)
        first_loss = value if first_loss is None else first_loss
    median = statistics.median(times[warmup:])
    tokens = 2 * pairs * (prompt + completion)
    return {
        "bench": "jaxalign_dpo", "size": size, "layout": layout, "median_step_s": round(median, 4),
        "tokens_per_s": round(tokens / median, 1), "first_step_s": round(times[0], 2), "first_loss": first_loss,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1), "jax": jax.__version__,
        "step_s": [round(t, 3) for t in times],
    }  # fmt: skip


def preference_example(prompt: Any, chosen: Any, rejected: Any) -> Any:
    """Ids of a prompt and two answers as the example [prompt | chosen | rejected] of ``jaxalign.data``."""
    import numpy as np

    from jaxalign import data

    chosen[-1] = rejected[-1] = EOS
    n, c, r = len(prompt), len(chosen), len(rejected)
    start = np.arange(n, dtype=np.int32)
    last = np.array([n - 1], np.int32)
    return data.Example(
        record_id=0,
        tokens=np.concatenate([prompt, chosen, rejected]),
        positions=np.concatenate([start, n + np.arange(c), n + np.arange(r)]).astype(np.int32),
        branch=np.repeat([0, 1, 2], [n, c, r]).astype(np.int32),
        source_index=np.concatenate([last, n + np.arange(c - 1), last, n + c + np.arange(r - 1)]).astype(np.int32),
        targets=np.concatenate([chosen, rejected]),
        target_sequence=np.repeat([0, 1], [c, r]).astype(np.int32),
        sequences=2,
        pairs=np.array([[0, 1]], np.int32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--layout", choices=["shared", "two_rows"], default="shared")
    parser.add_argument("--peer-python", help="python of an environment that holds the peer")
    parser.add_argument("--peer-script", help="the peer's script; it takes --size and --steps and prints one JSON line")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if not args.peer_script:
        row = measure(args.size, args.steps, args.warmup, args.pairs, args.prompt, args.completion, args.layout)
        print(json.dumps(row))
        return
    ours_command = [sys.executable, "-m", "benchmarks.dpo_step", "--size", args.size, "--steps", str(args.steps)]
    peer_command = [
        args.peer_python or sys.executable,
        args.peer_script,
        "--size",
        args.size,
        "--steps",
        str(args.steps),
    ]
    ours, peer = [], []
    for _ in range(args.rounds):
        peer.append(run(peer_command))
        ours.append(run([*ours_command, "--layout", args.layout]))
    print(f"| {args.size}, {args.rounds} rounds in turn | tokens/s | peak memory, MB |")
    print("|---|---|---|")
    figures = {}
    for name, rows in (("peer", peer), ("jaxalign", ours)):
        figures[name] = [statistics.median(float(row[key]) for row in rows) for key in ("tokens_per_s", "peak_rss_mb")]
        print(f"| {name} | {figures[name][0]:,.0f} | {figures[name][1]:,.0f} |")
    speed, memory = (figures["jaxalign"][i] / figures["peer"][i] for i in (0, 1))
    print(f"| jaxalign / peer | {speed:.2f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
