"""Train 20 = train some, stopped or killed, the same command again: bit for bit, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes import toy

STEPS = 20
TIMING = {"seconds", "tokens_per_second", "time"}
RECIPES = {
    "sft": ("demonstrations", ["--optimizer", "adamw", "--schedule", "cosine", "--packing", "--row-length", "24"]),
    "dpo": ("pairs", ["--reference-log-probs", "cached", "--frozen-layers", "1", "--accumulation", "2"]),
}


@pytest.fixture
def command(model, tmp_path):
    """``python -m jaxalign RECIPE ...`` into a folder, as the words of a process."""
    rows = {
        "pairs": toy.pair_records() * 3,
        "demonstrations": toy.demonstrations() * 3,
    }

    def make(recipe, folder, *flags):
        name, more = RECIPES[recipe]
        path = tmp_path / f"{name}.jsonl"
        if not path.exists():
            toy.write_jsonl(path, rows[name])
        return [
            sys.executable, "-m", "jaxalign", recipe, "--model", model, "--dataset", path, "--output-dir", folder,
            "--max-steps", STEPS, "--batch-size", 4, "--learning-rate", 1e-3, "--save-every", 1, "--seed", 5, *more,
            *flags,
        ]  # fmt: skip

    return make


def start(words):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[2] / ".jax_cache")
        ),
    }
    return subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not output
    return errors


def saved(folder):
    checkpoints = folder / "checkpoints"
    found = checkpoints.iterdir() if checkpoints.exists() else []
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def stop(process, folder, step, number):
    """Send the signal once there is a checkpoint of that step or a later one."""
    while saved(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_killed_and_continued_is_undisturbed_bit_for_bit(recipe, command, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finish(start(command(recipe, whole)))
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    losses = [row["loss"] for row in rows(whole)]
    assert len(set(losses)) > STEPS // 2

    # SIGTERM: a clean exit with a checkpoint of the step it ended at, and no model yet.
    status, errors = stop(start(command(recipe, parts)), parts, 3, signal.SIGTERM)
    assert status == 0, errors
    stopped = saved(parts)
    assert 3 <= stopped < STEPS, "the signal came too late to show anything"
    assert f"stopped at step {stopped}; the same command continues from there" in errors
    assert rows(parts)[-1]["step"] == stopped
    assert not (parts / "final").exists()

    # SIGKILL, no goodbye.
    status, errors = stop(start(command(recipe, parts)), parts, stopped + 4, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert stopped + 4 <= saved(parts) < STEPS, "the signal came too late to show anything"
    assert not (parts / "final").exists()

    killed = saved(parts)
    errors = finish(start(command(recipe, parts)))
    assert errors.count(f"{recipe} continues from step {killed} of {STEPS}\n") == 1
    assert f"{STEPS} steps done; the model is in {parts / 'final'}" in errors
    files = sorted(path.name for path in (whole / "final").iterdir())
    assert files == sorted(path.name for path in (parts / "final").iterdir())
    for name in files:
        assert (parts / "final" / name).read_bytes() == (whole / "final" / name).read_bytes(), name
    assert rows(parts) == rows(whole)
