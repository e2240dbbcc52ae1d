"""Scoring preferences by a model, packed against one example a row: what is computed once, as a reference is.

    python -m benchmarks.scoring --examples 256 --rounds 3

SmolLM2-135M scores PIQA's pairs (a goal, the right way and the wrong one) by ``recipes.example_log_probs``, whose rows
hold as many examples as fit into the longest one's length. "one a row" is the same call over batches that are not
packed. Both ways take turns in one run after a first round that compiles; reported are the median seconds, their ratio
(above 1: packed is faster), and the largest difference of a log-prob in nats.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()

    import numpy as np

    from experiments.assets import smollm2
    from experiments.assets.piqa import load_piqa
    from jaxalign import data, recipes

    config, params, tokenizer = smollm2.load()
    records = [
        {"prompt": [{"role": "user", "content": choice.goal}], "chosen": choice.right, "rejected": choice.wrong}
        for choice in load_piqa(0)[: options.examples]
    ]
    examples, _ = data.build_examples(records, tokenizer)
    make = data.make_batches
    ways: dict[str, Callable[..., Any]] = {
        "packed": make,
        "one a row": lambda *examples, **named: make(*examples, **named | {"pack": False}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(options.rounds + 1):
        for name, way in ways.items():
            with mock.patch("jaxalign.data.make_batches", way):
                started = time.perf_counter()
                found[name] = np.concatenate(
                    recipes.example_log_probs(config, params, examples, batch_size=options.batch_size)
                )
                seconds[name].append(time.perf_counter() - started)
    lengths = [len(example.tokens) for example in examples]
    print(f"{len(examples)} examples of {statistics.mean(lengths):.0f} tokens, the longest {max(lengths)}")
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s, the first round {seconds[name][0]:.2f} s")
    print(f"ratio {medians['one a row'] / medians['packed']:.2f}")
    print(f"largest difference {np.abs(found['packed'] - found['one a row']).max():.1e} nats")


if __name__ == "__main__":
    main()
