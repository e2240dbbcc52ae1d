"""SFT and DPO steps of published 1B shapes with random weights: tokens/s, model-FLOPs utilisation, peak memory.

    python -m benchmarks.gpu.steps --shape llama-3.2-1b --task dpo

bfloat16 activations, float32 master weights, AdamW, remat of whole layers, a frozen bfloat16 reference scored in the
step. One JSON line; tokens/s is of the median step.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._workload import preference_example
from benchmarks.gpu._workloads import SHAPES, TASKS, tokens_a_step, utilisation
from jaxalign import data, models, sharding, training
from jaxalign.recipes import PreferenceObjective, likelihood_objective, preference_objective

WARM_UP = 2


def model_config(name: str, *, attention: Any, remat: Any, dtype: Any) -> models.ModelConfig:
    """The shape as a decoder."""
    shape = SHAPES[name]
    neox = shape.model_type == "gpt_neox"
    return models.ModelConfig(
        family=shape.model_type, vocab_size=shape.vocab_size, width=shape.width, layers=shape.layers,
        heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim, mlp_width=shape.mlp_width,
        max_positions=2048, norm="layer" if neox else "rms", block="parallel" if neox else "pre_norm",
        rotary_dim=shape.head_dim // 4 if neox else None, rope_theta=10000.0 if neox else 500000.0,
        activation="gelu" if neox else "silu", gated_mlp=shape.gated, attention_bias=neox,
        attention_output_bias=neox, mlp_bias=neox, tied_embeddings=shape.tied, compute_dtype=dtype, remat=remat,
        attention=attention,
    )  # fmt: skip


def make_batch(shape_name: str, task_name: str, rng: np.random.Generator) -> data.Batch:
    """Random tokens in the batch form that recipes train on."""
    task, vocabulary = TASKS[task_name], SHAPES[shape_name].vocab_size

    def ids(length: int) -> np.ndarray:
        return rng.integers(0, min(vocabulary, 50000), length, dtype=np.int32)

    if task_name == "dpo":
        rows = [
            [preference_example(ids(task.prompt), ids(task.completion), ids(task.completion))] for _ in range(task.rows)
        ]
        tokens, targets = task.prompt + 2 * task.completion, 2 * task.completion
        shape = data.BatchShape(tokens=tokens, targets=targets, pairs=1, sequences=2, answers=2, layout="shared")
        return data.collate(rows, shape)
    length = task.completion
    rows = []
    for _ in range(task.rows):
        text, index = ids(length), np.arange(length, dtype=np.int32)
        rows.append([data.Example(
            record_id=0, tokens=text, positions=index, branch=0 * index, source_index=index[:-1],
            targets=text[1:], target_sequence=0 * index[1:], sequences=1, pairs=np.zeros((0, 2), np.int32),
        )])  # fmt: skip
    shape = data.BatchShape(tokens=length, targets=length - 1, pairs=0, sequences=1, answers=1, layout="shared")
    return data.collate(rows, shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--attention", default="auto", choices=["auto", "xla", "cudnn"])
    parser.add_argument("--remat", default="full", choices=["none", "full", "dots"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of activations")
    args = parser.parse_args()
    if args.steps <= WARM_UP:
        parser.error(f"--steps: the first {WARM_UP} are not counted, so more are needed")

    config = model_config(args.shape, attention=args.attention, remat=args.remat, dtype=args.dtype)
    mesh = sharding.make_mesh()
    params = models.init(config, jax.random.key(0))
    layout = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    if args.task == "dpo":
        objective = preference_objective(config, PreferenceObjective(beta=0.1))
        frozen = {"base": {}, "reference": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)}
    else:
        objective, frozen = likelihood_objective(config), {"base": {}, "reference": {}}
    optimizer, schedule = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-6), args.steps)
    state_layout = training.state_shardings(params, optimizer, mesh=mesh, shardings=layout)
    state = training.create_state(params, optimizer, jax.random.key(1), mesh=mesh, shardings=layout)
    del params
    step = training.make_train_step(
        objective.loss, optimizer, mesh=mesh, state_shardings=state_layout, schedule=schedule
    )
    rng = np.random.default_rng(0)
    times, loss = [], 0.0
    for _ in range(args.steps):
        batch = training.put_batch(make_batch(args.shape, args.task, rng), mesh)
        start = time.perf_counter()
        state, metrics = step(state, frozen, batch)
        loss = float(metrics["loss"][0])
        times.append(time.perf_counter() - start)
    median = statistics.median(times[WARM_UP:])
    device = jax.devices()[0]
    statistics_of_memory = device.memory_stats() or {}
    print(json.dumps({
        "bench": "step", "framework": "jaxalign", "shape": args.shape, "task": args.task, "loss": loss,
        "tokens_per_s": tokens_a_step(args.task) / median, "step_s": [round(t, 4) for t in times],
        "utilisation": utilisation(SHAPES[args.shape], args.task, median, device.device_kind),
        "peak_gb": statistics_of_memory.get("peak_bytes_in_use", 0) / 1e9, "device": device.device_kind,
        "attention": args.attention, "remat": args.remat,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
