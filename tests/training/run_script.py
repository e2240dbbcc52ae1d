"""A whole run as a program, for tests that kill it: ``run_script.py FOLDER [--die STEP] [--term STEP] ...``."""

import argparse
import json
import os
import signal
import time
from pathlib import Path

import jax

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--die", type=int, default=0, help="SIGKILL when the metrics of this step arrive")
parser.add_argument("--term", type=int, default=0, help="SIGTERM when the metrics of this step arrive")
parser.add_argument("--interrupt", type=int, default=0, help="SIGINT when the metrics of this step arrive")
parser.add_argument("--alone", action="store_true", help="--interrupt the first process and no other")
parser.add_argument("--hang", type=int, default=0, help="never return when the metrics of this step arrive")
parser.add_argument("--hang-save", action="store_true", help="a save never ends, as on a disk that hangs")
parser.add_argument("--step-timeout", type=float)
parser.add_argument("--stop-deadline", type=float)
parser.add_argument("--mesh", default="fsdp=1")
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process", type=int)
options = parser.parse_args()

cache = Path(__file__).parents[2] / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache)))
jax.config.update("jax_num_cpu_devices", options.devices)

from jaxalign.sharding import initialize_distributed, row_share  # noqa: E402
from jaxalign.training import (  # noqa: E402
    Checkpoints,
    MetricWriter,
    OptimizerConfig,
    TimeLimits,
    fingerprint,
    run_loop,
)
from tests.training.helpers import batches_from, make_params, setup  # noqa: E402

initialize_distributed(options.coordinator, options.processes, options.process)


def moving_average(extra, params, metrics, step):
    return {"average": jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra["average"], params)}


def observe(step, values):
    if step == options.die:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == options.hang:
        hang()
    if step == options.term and jax.process_index() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    if step == options.interrupt and not (options.alone and jax.process_index()):
        os.kill(os.getpid(), signal.SIGINT)
    signalled = options.term or options.interrupt
    if signalled and step > signalled and jax.process_count() > 1:
        # JAX looks for the signal once a second. The run must not be over by then: a process that hears of it after
        # another one has left waits three minutes for that one, and nothing was interrupted.
        time.sleep(0.25)


def hang(*_):
    (options.folder / "hangs").touch()
    while True:
        time.sleep(1)


def own_rows(batches):
    """This process's rows of each global batch."""
    index, count = row_share(step.mesh)
    for batch in batches:
        yield jax.tree.map(lambda leaf: leaf[len(leaf) // count * index : len(leaf) // count * (index + 1)], batch)


step, state, frozen, _, layout = setup(
    options.mesh,
    accumulation=2,
    optimizer=OptimizerConfig(learning_rate=0.02, schedule="cosine", warmup_steps=3, weight_decay=0.1, clip_norm=1.0),
    extra={"average": make_params()},
    update_extra=moving_average,
)
with Checkpoints(options.folder / "checkpoints", config={"mesh": options.mesh}, keep=2) as checkpoints:
    if options.hang_save:
        checkpoints.wait = hang
    restored = checkpoints.restore(jax.eval_shape(lambda: state), layout)
    start = 0
    if restored is not None:
        state, start = restored.state, restored.position
    with MetricWriter(options.folder / "metrics.jsonl", step=start) as writer:
        result = run_loop(
            step,
            state,
            own_rows(batches_from(start)),
            frozen=frozen,
            max_steps=options.steps,
            position=start,
            save_every=4,
            checkpoints=checkpoints,
            writer=writer,
            observe=observe,
            limits=TimeLimits(step=options.step_timeout, stop=options.stop_deadline),
        )
summary = {
    "start": start,
    "step": result.step,
    "position": result.position,
    "interrupted": result.interrupted,
    "fingerprint": fingerprint(result.state),
}
if jax.process_index() == 0:
    (options.folder / "result.json").write_text(json.dumps(summary))
