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
from typing import Literal

from benchmarks._workload import SIZES, dpo_batch, dpo_work, gpt2, run


def measure(
    size: str, steps: int, warmup: int, pairs: int, prompt: int, completion: int, layout: Literal["shared", "two_rows"]
) -> dict[str, object]:
    """Run the steps in this process and return one row of figures."""
    import jax
    import numpy as np

    from jaxalign import sharding, training

    config = gpt2(size)
    work = dpo_work(config, sharding.make_mesh(), steps)
    state, rng = work.state, np.random.default_rng(0)
    batches = [dpo_batch(config, rng, pairs, prompt, completion, layout) for _ in range(steps)]
    times, first_loss = [], None
    for one in batches:
        start = time.perf_counter()
        state, metrics = work.step(state, work.frozen, training.put_batch(one, work.mesh))
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
