"""Sampling speed on random weights, beside transformers' generate on the same workload, in turn.

    python -m benchmarks.sampling --size tiny
    python -m benchmarks.sampling --size tiny --peer-python PEER/bin/python --peer-script trl_generate.py --rounds 3

Workload: GPT-2 shape ("tiny" 4 layers of width 256, "small" 12 of 768), vocabulary 50,257, float32; 16 prompts of 32
tokens, 64 new tokens each at temperature 1, no stop token, so no early exit. With a peer, both run in turn as whole
processes in the same environment (set GLIBC_TUNABLES for both or for neither), and what is printed is the ratio of
medians over the rounds. CPU seconds stand beside the wall clock: on a busy machine they are the steadier figure.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from typing import Any

from benchmarks._workload import SIZES, gpt2, run, zipf_ids


def measure(size: str, repeats: int, warmup: int, batch: int, prompt: int, new: int, **settings: Any) -> dict[str, Any]:
    """Sample ``repeats`` times in this process and return one row of figures."""
    import jax
    import numpy as np

    from jaxalign import models, sampling

    config = gpt2(size)
    params = jax.block_until_ready(models.init(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    prompts = zipf_ids(rng, batch, prompt).tolist()
    seconds, cpu = [], []
    for repeat in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        samples = sampling.generate(
            config, params, prompts, jax.random.key(repeat), max_new_tokens=new, batch_size=batch, **settings
        )
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        assert samples.mask.all()
    median = statistics.median(seconds[warmup:])
    return {
        "bench": "jaxalign_generate",
        "size": size,
        "batch": batch,
        "new_tokens": new,
        "tokens_per_s": round(batch * new / median, 1),
        "median_s": round(median, 3),
        "cpu_s": round(statistics.median(cpu[warmup:]), 3),
        "first_s": round(seconds[0], 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, ``rounds`` times, and the ratio of their medians."""
    ours_command = [sys.executable, "-m", "benchmarks.sampling", "--size", arguments.size]
    ours_command += ["--repeats", str(arguments.repeats), "--warmup", str(arguments.warmup)]
    peer_command = [arguments.peer_python, arguments.peer_script, "--size", arguments.size]
    peer_command += ["--steps", str(arguments.repeats), "--warmup", str(arguments.warmup)]
    ours: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        for rows, command in ((ours, ours_command), (peer, peer_command)):
            rows.append(run(command))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    medians = [statistics.median(row["tokens_per_s"] for row in rows) for rows in (ours, peer)]
    result = {"size": arguments.size, "tokens_per_s": medians[0], "peer_tokens_per_s": medians[1]}
    return result | {"ratio": round(medians[0] / medians[1], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=6, help="generations, warm-up included")
    parser.add_argument("--warmup", type=int, default=1, help="generations left out of the median")
    parser.add_argument("--batch", type=int, default=16, help="prompts decoded together; the peer always runs 16")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--peer-python", help="the peer's interpreter")
    parser.add_argument("--peer-script", help="the peer's benchmark: takes --size --steps --warmup, prints a JSON line")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if bool(arguments.peer_python) != bool(arguments.peer_script):
        parser.error("--peer-python and --peer-script go together")
    if arguments.peer_python:
        row = compare(arguments)
    else:
        row = measure(
            arguments.size, arguments.repeats, arguments.warmup, arguments.batch, prompt=32, new=64,
            top_k=arguments.top_k, top_p=arguments.top_p,
        )  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
