"""The sampler on a published 1B shape with random weights: refilled rows against plain padded batches.

    python -m benchmarks.gpu.sampling --shape llama-3.2-1b

bfloat16 weights. Requests whose prompts and completions have the lengths of English sentences (log-normal, mean about
20, at most 128), ended at their own length on both sides. Two JSON lines; tokens/s counts completions' tokens of the
median run. "share of bandwidth" is what a decoding step must read, every weight once, over what the memory could have
delivered meanwhile: 1 would be the ceiling of a batch this small.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu._workloads import SHAPES, bandwidth
from benchmarks.gpu.steps import model_config
from jaxalign import models, sampling


def lengths(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Of prompts and completions, as sentences are."""
    rng = np.random.default_rng(seed)
    drawn = np.clip(np.exp(rng.normal(2.8, 0.65, (2, count))).astype(int), 1, 128).tolist()
    return drawn[0], drawn[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = model_config(args.shape, attention="auto", remat="none", dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), models.init(config, jax.random.key(0)))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not config.tied_embeddings:  # a step reads a few of its rows
        weights -= params["embed"]["tokens"].nbytes
    params = models.unstack(config, params)
    rng = np.random.default_rng(1)
    prompt_lengths, limits = lengths(args.requests, 0)
    prompts = [rng.integers(0, min(config.vocab_size, 50000), length).tolist() for length in prompt_lengths]
    device = jax.devices()[0]
    for name, refill in (("engine", True), ("plain", False)):
        seconds = []
        for _ in range(args.repeats + 1):  # the first compiles
            start = time.perf_counter()
            found = sampling.generate(
                config, params, prompts, jax.random.key(1), max_new_tokens=limits, batch_size=args.batch, refill=refill
            )
            seconds.append(time.perf_counter() - start)
            assert found.lengths.tolist() == limits
        median = statistics.median(seconds[1:])
        peak = bandwidth(device.device_kind)
        fewest = sum(limits) / args.batch  # steps, were every row always of use
        print(json.dumps({
            "bench": "sampling", "shape": args.shape, "form": name, "tokens_per_s": sum(limits) / median,
            "first_s": seconds[0], "seconds": seconds[1:], "batch": args.batch, "requests": args.requests,
            "share_of_bandwidth": None if peak is None else weights * fewest / median / peak,
            "device": device.device_kind,
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
