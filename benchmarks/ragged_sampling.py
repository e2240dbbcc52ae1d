"""The sampler as an engine against a plain padded batch and transformers' ``generate``, on ragged work.

    python -m benchmarks.ragged_sampling --size tiny --peer-python PEER/bin/python

Work: requests whose prompts and completions are as long as sentences of the packaged film reviews (words; each request
is a sentence and the one after it), random token ids below a vocabulary of 50,257, GPT-2 shape. A completion ends at
its own length, on every side, as it would by its EOS. "plain" decodes the same batches until each batch's longest row
has ended (``refill=False``). All sides in turn, ``--rounds`` times; the figures are useful tokens a second (those of
completions, no padding) and ratios of medians. The first generation of a process compiles and is left out.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._workload import SIZES, VOCABULARY, gpt2, run, zipf_ids


def workload(requests: int, longest: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of random ids and the length of each completion, both as long as real sentences."""
    from experiments.assets import movie_reviews

    texts = movie_reviews.load_movie_reviews(seed).prompts.texts
    pairs: list[tuple[int, int]] = []
    for text in texts:
        lengths = [len(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence.split()]
        pairs += zip(lengths[::2], lengths[1::2], strict=False)
    rng = np.random.default_rng(seed)
    chosen = [pairs[index] for index in rng.permutation(len(pairs))[:requests]]
    prompts = [zipf_ids(rng, min(n, longest)).tolist() for n, _ in chosen]
    return prompts, [min(n, longest) for _, n in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--longest", type=int, default=128, help="most tokens of a prompt and of a completion")
    parser.add_argument("--batch", type=int, default=16, help="rows decoded together, on every side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", help="an interpreter with torch and transformers")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import jax

    from jaxalign import models, sampling

    prompts, limits = workload(arguments.requests, arguments.longest, arguments.seed)
    config = gpt2(arguments.size)
    params = models.unstack(config, models.init(config, jax.random.key(0)))

    def ours(refill: bool) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        found = sampling.generate(
            config, params, prompts, jax.random.key(1), max_new_tokens=limits, batch_size=arguments.batch, refill=refill
        )
        assert found.lengths.tolist() == limits
        return time.perf_counter() - start, time.process_time() - cpu

    def peer() -> tuple[float, float]:
        work: dict[str, Any] = {"shape": SIZES[arguments.size], "vocabulary": VOCABULARY, "batch": arguments.batch}
        work |= {"prompts": prompts, "limits": limits, "repeats": 2}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "workload.json"
            file.write_text(json.dumps(work))
            script = Path(__file__).with_name("_transformers_ragged.py")
            row = run([arguments.peer_python, str(script), str(file)])
        return row["seconds"][-1], row["cpu"][-1]

    sides = {"engine": lambda: ours(True), "plain": lambda: ours(False)}
    for side in sides.values():
        side()
    if arguments.peer_python:
        sides["transformers"] = peer
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            taken[name].append(side())
            print(name, *(f"{value:.2f}" for value in taken[name][-1]), "s wall, CPU", file=sys.stderr, flush=True)
    rows = {}
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        rows[name] = {"tokens_per_s": round(sum(limits) / wall, 1), "tokens_per_cpu_s": round(sum(limits) / cpu, 1)}
    result: dict[str, Any] = {"size": arguments.size, "tokens": sum(limits), "mean": sum(limits) / len(limits), **rows}
    for name in list(rows)[1:]:
        result[f"engine / {name}"] = round(rows["engine"]["tokens_per_s"] / rows[name]["tokens_per_s"], 2)
        result[f"engine / {name}, CPU"] = round(rows["engine"]["tokens_per_cpu_s"] / rows[name]["tokens_per_cpu_s"], 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
