"""A loss that jumps ends the run, and the records are named."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from jaxalign.training import LossSpikes, MetricWriter, TrainingError, read_losses, run_loop
from tests.processes import run_together
from tests.training.helpers import batches_from, setup


def falling(count, seed=0):
    source = random.Random(seed)
    return [3 * 0.98**index + source.gauss(0, 0.1) for index in range(count)]


def test_a_falling_noisy_loss_has_no_spikes():
    for seed in range(20):
        spikes = LossSpikes(6.0)
        assert not [index for index, loss in enumerate(falling(300, seed)) if spikes.check(loss)]


def test_a_jump_is_one_and_so_is_the_next():
    spikes = LossSpikes(5.0, falling(100))
    assert "deviations above the median" in spikes.check(6.0)
    assert spikes.check(6.0)  # the first has not widened what is usual
    assert not spikes.check(0.6)
    assert not spikes.check(-6.0)  # a fall is none


def test_a_run_that_has_begun_or_has_converged_is_left_alone():
    early = LossSpikes(5.0)
    assert not any(early.check(loss) for loss in [5.0, 9.0, 2.0, 30.0])
    flat = LossSpikes(5.0, [0.5] * 64)
    assert not flat.check(0.51)
    assert flat.check(0.6)


def test_the_loop_stops_and_names_the_records(tmp_path):
    def batches(start=0):
        for index, batch in enumerate(batches_from(start), start):
            yield batch | {"factor": np.full(16, 1000.0 if index == 24 else 0.0, np.float32)}

    from tests.training.test_loop import poisoned

    def run(stop):
        step, state, frozen, _, _ = setup(loss=poisoned)
        with MetricWriter(tmp_path / "m.jsonl") as writer:
            return run_loop(
                step,
                state,
                batches(),
                frozen=frozen,
                max_steps=stop,
                writer=writer,
                identify=lambda batch: batch["record"][:2],
                spikes=LossSpikes(8.0),
            )

    with pytest.raises(
        TrainingError, match=r"step 25: the loss .* \(--loss-spike 8\); records \[384, 385\], counted from 0"
    ):
        run(40)
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "m.jsonl").read_text().splitlines())]
    assert read_losses(tmp_path / "m.jsonl", 20) == losses[:20]
    assert read_losses(tmp_path / "m.jsonl", 0) == []
    assert read_losses(tmp_path / "none.jsonl", 5) == []


def both_read(port, process, count, folder):
    """One of two processes; the second sees a file that is just being replaced."""
    from jaxalign import sharding

    sharding.initialize_distributed(f"localhost:{port}", count, process)
    print(read_losses(Path(folder) / f"{process}.jsonl", 9))


def test_all_processes_have_the_losses_of_the_first(tmp_path):
    rows = [{"step": index, "loss": 1 / index} for index in range(1, 5)]
    (tmp_path / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "1.jsonl").write_text('{"step": 1, "lo')
    found = run_together("tests.training.test_spikes:both_read", 2, tmp_path)
    assert [said.splitlines()[-1] for said in found] == [str([row["loss"] for row in rows])] * 2
