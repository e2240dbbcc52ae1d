"""What must not change Chain of Hindsight: everything is on: drawn chains, forgetful masks, pretraining text."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign import data, recipes, sharding
from jaxalign.recipes._fit_data import make_source
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.recipes.test_invariance import assert_only_the_top_moved
from tests.recipes.toy import STEPS, Run, assert_same_run
from tests.tolerances import FLOAT32

ROOT = Path(__file__).parents[2]
FORGET = {"forget_min_ratio": 0.1, "forget_max_ratio": 0.3}


def objective(config, **options):
    return recipes.hindsight_objective(config, recipes.HindsightObjective(**FORGET | options))


def listed_draws():
    chains = toy.chains()
    return [chains.draw(index, 0) for index in range(len(chains))]


@functools.cache
def run(unlikelihood: float | None = None, listed: bool = False, **options) -> Run:
    """Eight records a step, each drawn anew, and sixteen rows of text; ``listed``: always the same draws."""
    return toy.train(
        "llama",
        listed_draws() if listed else toy.chains(),
        functools.partial(objective, unlikelihood_weight=unlikelihood),
        pretraining=toy.pretraining(),
        **options,
    )


# All three axes and micro-batches at once: XLA's virtual devices then wait for each other for ever, every other time.
VARIANTS = {
    "one row a micro-batch": {"accumulation": 8},
    "data 8": {"mesh": "data=8"},
    "fsdp 8": {"mesh": "fsdp=8"},
    "tensor 4, data 2": {"mesh": "data=2,tensor=4"},
    "data 2, fsdp 2, tensor 2": {"mesh": "data=2,fsdp=2,tensor=2"},
    "micro-batches on a mesh": {"mesh": "data=2,tensor=2", "accumulation": 2},
    "recomputed activations": {"remat": "full"},
    "sequence 4": {"mesh": "sequence=4"},
    "data 2, sequence 2, tensor 2": {"mesh": "data=2,sequence=2,tensor=2"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_does_not_depend_on(variant):
    assert_same_run(run(**VARIANTS[variant]), run())


def test_what_is_on_is_on():
    """Nothing above would notice an option that does nothing."""
    plain = toy.train("llama", toy.chains(), functools.partial(objective, forget_min_ratio=0.0, forget_max_ratio=0.0))
    assert {"loss/feedback", "loss/pretraining"} <= run().metrics[0].keys()
    assert abs(run().metrics[0]["loss/feedback"] / plain.losses[0] - 1) > 0.001
    assert run().metrics[0]["loss"] == pytest.approx(
        run().metrics[0]["loss/feedback"] + 1.5 * run().metrics[0]["loss/pretraining"], rel=FLOAT32
    )
    draws = [toy.chains().draw(0, used).tokens.tolist() for used in range(STEPS)]
    assert len({tuple(draw) for draw in draws}) > 1


def test_unlikelihood_does_not_depend_on_micro_batches():
    assert_same_run(run(unlikelihood=0.5, accumulation=8), run(unlikelihood=0.5))


def packed(examples, rows):
    """Options that pack all examples into so many rows, in every epoch that will be seen."""

    def plan(**options):
        return data.make_batches(examples, batch_size=rows, **options).plan

    longest = plan().shape.tokens
    length = next(
        length
        for length in range(longest, 8 * longest)
        if all(len(plan(pack=True, max_length=length).epoch(epoch)) == rows for epoch in range(STEPS))
    )
    return {"packing": True, "row_length": length, "batch_size": rows}


@pytest.mark.parametrize("listed", [False, True])
def test_packed_is_unpacked(listed):
    """The rows of an epoch hold the same draws, packed by their own sizes."""
    options = packed(listed_draws() if listed else toy.chains(), 2)
    assert_same_run(run(listed=listed, **options), run(listed=listed))


ABOVE = {"frozen layers": {"frozen_layers": 1}, "an adapter": {"lora_rank": 2, "lora_alpha": 8.0}}


@pytest.mark.parametrize("kind", ABOVE)
def test_what_trains_in_part_does_not_depend_on_micro_batches_and_the_mesh(kind):
    options = ABOVE[kind]
    found, expected = run(mesh="data=2,tensor=2", accumulation=2, **options), run(**options)
    assert_same_run(found, expected)
    if "frozen_layers" in options:
        assert_only_the_top_moved(found)


# --- two processes ----------------------------------------------------------------------------------------------------

SGD = OptimizerConfig(optimizer="sgd", learning_rate=0.1)


def share(port: str, process: int, folder: str, mesh: str) -> None:
    """One of two processes of two devices, which train together."""
    jax.config.update("jax_num_cpu_devices", 2)
    sharding.initialize_distributed(f"localhost:{port}", 2, process)
    config = recipes.FitConfig(max_steps=STEPS, batch_size=8, mesh=mesh, optimizer=SGD, accumulation=2)
    chains, text = toy.chains(), toy.pretraining()
    own = make_source(chains, config, sharding.parse_mesh(mesh), 0, shuffle=True, pretraining=text)[0]
    parts = 1 if "sequence" in mesh else 2  # of rows: both processes have a piece of each
    assert own.tokens.shape[0] == 8 // parts
    assert own.pretraining.tokens.shape[0] == 16 // parts
    result = recipes.fit(
        toy.SHAPES["llama"], toy.params("llama"), chains, objective, config,
        pretraining=text, directory=folder, report=lambda *_: None,
    )  # fmt: skip
    params = toy.leaves(jax.tree.map(sharding.to_host, result.params))
    if process == 0:
        np.savez(Path(folder) / "params.npz", **params)


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "sequence=4"])
def test_two_processes_are_one(mesh, tmp_path):
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    program = "from tests.recipes.test_hindsight_invariance import share; "
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{program}share({port}, {index}, {str(tmp_path)!r}, {mesh!r})"],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        )
        for index in (0, 1)
    ]  # fmt: skip
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
    finally:  # one alone would wait for the other
        for process in processes:
            process.kill()
    expected = run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row, whole in zip(rows, expected.metrics, strict=True):
        for name in ("loss", "loss/feedback", "loss/pretraining", "nll/best", "nll/worse", "grad_norm"):
            assert row[name] == pytest.approx(whole[name], rel=FLOAT32), name
    with np.load(tmp_path / "params.npz") as params:
        assert params.keys() == expected.params[-1].keys()
        for name, value in expected.params[-1].items():
            np.testing.assert_allclose(params[name], value, rtol=FLOAT32, atol=FLOAT32 * np.abs(value).max())
