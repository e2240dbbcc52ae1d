"""Dense against fused log-probabilities: temporary memory, gradients and time of one compiled loss and its gradient.

    python benchmarks/fused_log_probs.py                      [4096 tokens, width 1024, 50,257 words], about two minutes
    python benchmarks/fused_log_probs.py --tokens 1024 --width 256 --repeats 5

The loss is the mean negative log-likelihood, differentiated with respect to the hidden states and the unembedding, in
float32. "Dense" is what one writes first, logits and a log-softmax, compiled by the same compiler. Prints a Markdown
table; fails if the fused form needs more than a fifth of the dense form's temporary bytes, or a gradient differs by
more than 1e-5 of its largest entry.

Two CPU cores, jax 0.10.2: 81 MB against 1,647 MB of temporaries (0.05), gradients equal to 1.3e-6, times equal (the
fused form makes the logits twice, the dense form walks through memory).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.losses import fused_token_log_probs, token_log_probs

MEMORY_RATIO = 1 / 5
GRADIENT_DIFFERENCE = 1e-5


def compile_gradient(log_probs: Callable[..., jax.Array], arguments: tuple[jax.Array, ...]) -> Any:
    """The compiled value and gradients of the mean negative log-likelihood."""

    def loss(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array) -> jax.Array:
        return -jnp.mean(log_probs(hidden, unembedding, targets))

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()


def seconds(compiled: Any, arguments: tuple[jax.Array, ...], repeats: int) -> float:
    """The fastest of ``repeats`` runs: other work on the machine only ever adds time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--chunk-size", type=int, default=None, help="words a slice (default: the library's)")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    arguments = (
        jnp.asarray(rng.normal(size=(options.tokens, options.width)), jnp.float32),
        jnp.asarray(rng.normal(size=(options.vocabulary, options.width)) / options.width**0.5, jnp.float32),
        jnp.asarray(rng.integers(0, options.vocabulary, options.tokens)),
    )
    chunk = {} if options.chunk_size is None else {"chunk_size": options.chunk_size}
    forms = {
        "dense": lambda hidden, unembedding, targets: token_log_probs(hidden @ unembedding.T, targets),
        "fused": lambda hidden, unembedding, targets: fused_token_log_probs(hidden, unembedding, targets, **chunk),
    }
    compiled = {name: compile_gradient(form, arguments) for name, form in forms.items()}
    results = {name: jax.device_get(program(*arguments)) for name, program in compiled.items()}
    temporary = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    times = {name: seconds(program, arguments, options.repeats) for name, program in compiled.items()}
    differences = [
        float(np.abs(fused - dense).max() / np.abs(dense).max())
        for fused, dense in zip(results["fused"][1], results["dense"][1], strict=True)
    ]

    size = f"[{options.tokens} tokens, width {options.width}, {options.vocabulary} words]"
    print(f"{size}, float32, {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| | dense | fused | fused / dense |")
    print("|---|---:|---:|---:|")
    ratio = temporary["fused"] / temporary["dense"]
    print(f"| temporary bytes | {temporary['dense']:,} | {temporary['fused']:,} | {ratio:.3f} |")
    print(f"| seconds | {times['dense']:.2f} | {times['fused']:.2f} | {times['fused'] / times['dense']:.2f} |")
    print(f"| loss (nats) | {results['dense'][0]:.6f} | {results['fused'][0]:.6f} | |")
    print(f"| largest difference of the hidden gradient, relative | | | {differences[0]:.1e} |")
    print(f"| largest difference of the unembedding gradient, relative | | | {differences[1]:.1e} |")
    if ratio > MEMORY_RATIO:
        raise SystemExit(f"the fused form's temporary bytes are {ratio:.3f} of the dense form's, not {MEMORY_RATIO}")
    if max(differences) > GRADIENT_DIFFERENCE:
        raise SystemExit(f"a gradient differs by {max(differences):.1e}, not {GRADIENT_DIFFERENCE}")


if __name__ == "__main__":
    main()
