"""cuDNN's attention against XLA's in bfloat16, for every mask the library makes: same numbers, and how much faster.

    python -m benchmarks.gpu.attention

Prints a JSON line a mask and exits with 1 where an output or a gradient is further off than the tolerance.
"""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models
from jaxalign.models._attention import View, visibility
from jaxalign.models._kernels import attend

ROWS, LENGTH, HEADS, KV_HEADS, SIZE, REPEATS = 8, 1024, 32, 8, 64, 20
# bfloat16 keeps 8 bits: one rounding is 2^-9 of a number; outputs of two kernels differ by a few of them.
LIMIT = 2e-2
CONFIG = models.ModelConfig(
    vocab_size=8, width=HEADS * SIZE, layers=1, heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, mlp_width=8,
    max_positions=LENGTH, compute_dtype="bfloat16",
)  # fmt: skip


def cases() -> dict[str, View]:
    """A name and what attention is told, for every kind of mask."""
    index = jnp.arange(LENGTH)[None]
    ones = jnp.ones((1, LENGTH), jnp.int32)

    def view(example=None, branch=None, window=None, attention_mask=None) -> View:
        ids, branches = ones if example is None else example, 0 * ones if branch is None else branch
        visible = visibility(ids, branches, index, ids, branches, index, window)
        if attention_mask is not None:
            visible = visible & attention_mask
        return View(None, visible, window, example, branch is None and attention_mask is None)

    packed = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 5, (ROWS, LENGTH)), axis=1), jnp.int32)
    branches = jnp.broadcast_to(jnp.repeat(jnp.arange(3), np.array([512, 256, 256]))[None], (ROWS, LENGTH))
    forgetful = jax.random.bernoulli(jax.random.key(0), 0.95, (ROWS, LENGTH, LENGTH)) | jnp.eye(LENGTH, dtype=bool)
    return {
        "causal": view(),
        "window of 256": view(window=256),
        "packed examples": view(example=packed),
        "shared prompt, two answers": view(example=jnp.ones_like(branches), branch=branches),
        "forgetful mask": view(attention_mask=forgetful),
    }


def main() -> None:
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = [(ROWS, LENGTH, heads, SIZE) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    arrays = [jax.random.normal(k, s).astype(jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]
    inputs, weights = tuple(arrays[:3]), arrays[3]
    failed = False
    for name, view in cases().items():
        results, times = {}, {}
        for kernel in ("xla", "cudnn"):
            config = CONFIG.replace(attention=kernel)

            def total(inputs, view=view, config=config):
                query, key, value = inputs
                out = attend(config, query, key, value, view)
                return jnp.sum(out.astype(jnp.float32) * weights.astype(jnp.float32)), out

            run = jax.jit(jax.value_and_grad(total, has_aux=True))
            (_, out), gradients = jax.block_until_ready(run(inputs))
            results[kernel] = (out, gradients)
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                jax.block_until_ready(run(inputs))
                seconds.append(time.perf_counter() - start)
            times[kernel] = 1000 * statistics.median(seconds)
        output_error = _error(results["cudnn"][0], results["xla"][0])
        gradient_error = max(map(_error, results["cudnn"][1], results["xla"][1]))
        failed |= not max(output_error, gradient_error) <= LIMIT
        print(json.dumps({
            "bench": "attention", "case": name, "output_error": output_error, "gradient_error": gradient_error,
            "limit": LIMIT, "xla_ms": times["xla"], "cudnn_ms": times["cudnn"],
            "device": jax.devices()[0].device_kind,
        }), flush=True)  # fmt: skip
    sys.exit(1 if failed else 0)


def _error(actual: jax.Array, expected: jax.Array) -> float:
    """Largest difference over the largest expected size."""
    ours, theirs = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


if __name__ == "__main__":
    main()
