"""What checkpoints cost: how long a step waits for a save, and how long a run takes to be running again.

    python -m benchmarks.checkpoint_stall

A model of SmolLM2-135M's shape with random weights, float32, AdamW: 1.6 GB a checkpoint. A process trains some steps
and saves between them, in the background as ``Checkpoints`` does, then waiting for each save; the stall is what a save
adds to a step. Another process restores what was saved and makes one step more, timed from its start: imports, the
model's abstract shapes, restoring (checksums included), compiling, the step. The compilation cache is on, as users have
it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

START = time.monotonic()


def shape() -> Any:
    """SmolLM2-135M's."""
    from jaxalign import models

    return models.ModelConfig(
        vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536, max_positions=8192,
        tied_embeddings=True, rope_theta=100_000.0,
    )  # fmt: skip


def pieces(rows: int, length: int) -> tuple[Any, ...]:
    """(step, shapes of the state, its layout, a batch, the parameters' shapes, the optimizer, the mesh, the layout)."""
    import jax
    import numpy as np

    from jaxalign import models, sharding, training

    config = shape()
    mesh = sharding.parse_mesh("")
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    layout = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    optimizer, schedule = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-4), 1000)

    def loss(params: Any, frozen: Any, batch: Any, key: Any, extra: Any) -> Any:
        tokens = batch["tokens"]
        hidden = models.apply(config, params, tokens)
        index = jax.numpy.broadcast_to(jax.numpy.arange(length - 1), (rows, length - 1))
        found = models.target_log_probs(config, params, hidden, index, tokens[:, 1:])
        return {"tokens": (-found.sum(), float(found.size), 1.0)}, {}

    layouts = training.state_shardings(params, optimizer, mesh=mesh, shardings=layout)
    step = training.make_train_step(loss, optimizer, mesh=mesh, state_shardings=layouts, schedule=schedule)
    shapes = training.state_shapes(params, optimizer)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    batch = training.put_batch({"tokens": tokens}, mesh)
    return step, shapes, layouts, batch, optimizer, mesh, layout


def save(folder: Path, steps: int, rows: int, length: int) -> dict[str, Any]:
    """Train and save, in the background and waiting; seconds."""
    import jax

    from jaxalign import models, training

    step, shapes, _, batch, optimizer, mesh, layout = pieces(rows, length)
    params = models.init(shape(), jax.random.key(0))
    state = training.create_state(params, optimizer, jax.random.key(1), mesh=mesh, shardings=layout)
    del params
    number = 0

    def train() -> float:
        nonlocal state, number
        begin = time.monotonic()
        state, metrics = step(state, None, batch)
        jax.block_until_ready(metrics)
        number += 1
        return time.monotonic() - begin

    train()
    found: dict[str, Any] = {"step": [train() for _ in range(steps)]}
    with training.Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(number, state, position=number)  # compiles the checksums
        checkpoints.wait()
        for kind in ("background", "waiting"):
            stalls, steps_beside, written = [], [], []
            for _ in range(steps):
                train()
                begin = time.monotonic()
                checkpoints.save(number, state, position=number)
                if kind == "waiting":
                    checkpoints.wait()
                stalls.append(time.monotonic() - begin)
                steps_beside.append(train())
                checkpoints.wait()
                written.append(time.monotonic() - begin)
            found |= {kind: stalls, f"{kind}, the next step": steps_beside, f"{kind}, written": written}
    found["bytes"] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.params)) * 3
    return found


def resume(folder: Path, rows: int, length: int) -> dict[str, Any]:
    """Restore and make one step; seconds, each part by itself."""
    import jax
    import orbax.checkpoint  # noqa: F401

    from jaxalign import training

    imported = time.monotonic()
    step, shapes, layouts, batch, *_ = pieces(rows, length)
    traced = time.monotonic()
    with training.Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(shapes, layouts)
    assert restored is not None
    read = time.monotonic()
    step.lower(restored.state, None, batch).compile()
    compiled = time.monotonic()
    jax.block_until_ready(step(restored.state, None, batch)[1])
    done = time.monotonic()
    return {
        "imports": imported - START, "shapes": traced - imported, "restore": read - traced,
        "trace and compile (cached)": compiled - read, "first step": done - compiled, "all": done - START,
    }  # fmt: skip


def table(found: dict[str, Any], resumed: dict[str, Any]) -> str:
    """Markdown."""

    def ms(name: str) -> str:
        return f"{1000 * statistics.median(found[name]):,.0f}"

    lines = [
        f"A step: {ms('step')} ms (median of {len(found['step'])}); a checkpoint: {found['bytes'] / 1e9:.2f} GB.",
        "",
        "| a save | the loop waits, ms | the step beside it, ms | all written after, ms |",
        "|---|---:|---:|---:|",
        *(
            f"| {kind} | {ms(kind)} | {ms(f'{kind}, the next step')} | {ms(f'{kind}, written')} |"
            for kind in ("background", "waiting")
        ),
        "",
        "| from process start to the first new step | seconds |",
        "|---|---:|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in resumed.items()),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="saves of each kind")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where checkpoints go: the disk that is measured")
    parser.add_argument("--part", choices=["save", "resume"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "save":
        print(json.dumps(save(args.folder, args.steps, args.rows, args.length)))
    elif args.part == "resume":
        print(json.dumps(resume(args.folder, args.rows, args.length)))
    else:
        from benchmarks._workload import run

        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            command = [sys.executable, "-m", "benchmarks.checkpoint_stall", "--folder", str(folder / "checkpoints")]
            command += ["--steps", str(args.steps), "--rows", str(args.rows), "--length", str(args.length), "--part"]
            cache = {"JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))}
            found = run([*command, "save"], cache)
            run([*command, "resume"], cache)  # fills the compilation cache
            print(table(found, run([*command, "resume"], cache)))


if __name__ == "__main__":
    main()
