"""The loop: order, rows, evaluation, a non-finite step, signals."""

import dataclasses
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from jaxalign.training import Checkpoints, MetricWriter, TrainingError, fingerprint, run_loop
from tests.training.helpers import batches_from, make_batch, setup


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_saves_and_the_end(tmp_path):
    step, state, frozen, _, layout = setup("fsdp=2")
    seen, consumed = [], []

    def batches():
        for index, batch in enumerate(batches_from(0)):
            consumed.append(index)
            yield batch

    with Checkpoints(tmp_path / "c", keep=9) as checkpoints, MetricWriter(tmp_path / "m.jsonl") as writer:
        result = run_loop(
            step,
            state,
            batches(),
            frozen=frozen,
            max_steps=7,
            save_every=3,
            checkpoints=checkpoints,
            writer=writer,
            observe=lambda number, values: seen.append((number, values["loss"])),
            count_tokens=lambda batch: int(batch["mask"].sum()),
        )
        assert checkpoints.steps() == [3, 6, 7]
        restored = checkpoints.restore(result.state, layout)
    assert (result.step, result.position, result.interrupted) == (7, 7, False)
    assert (restored.step, restored.position) == (7, 7)
    assert restored.metrics == result.metrics
    assert fingerprint(restored.state) == fingerprint(result.state)
    assert consumed == list(range(7))  # not one batch more than is used
    table = rows(tmp_path / "m.jsonl")
    assert [row["step"] for row in table] == list(range(1, 8))
    assert [(row["step"], row["loss"]) for row in table] == seen
    for index, row in enumerate(table):
        assert row["tokens"] == make_batch(index)["mask"].sum()
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])


def test_the_metrics_of_a_step_are_read_after_the_next_is_dispatched():
    step, state, frozen, _, _ = setup()
    events = []

    class Spy:
        mesh = step.mesh

        def __call__(self, *args):
            events.append("dispatch")
            return step(*args)

    run_loop(
        Spy(), state, batches_from(0), frozen=frozen, max_steps=3, observe=lambda number, values: events.append(number)
    )
    assert events == ["dispatch", "dispatch", 1, "dispatch", 2, 3]


def test_the_batches_may_end_first():
    step, state, frozen, _, _ = setup()
    result = run_loop(step, state, [make_batch(0), make_batch(1)], frozen=frozen, max_steps=9)
    assert (result.step, result.position, int(result.state.step)) == (2, 2, 2)


def test_nothing_left_to_do():
    step, state, frozen, _, _ = setup()
    result = run_loop(
        step, state, batches_from(0), frozen=frozen, max_steps=0, evaluate=lambda *_: pytest.fail("called")
    )
    assert (result.step, result.metrics) == (0, {})


def test_evaluation_at_the_beginning_between_and_at_the_end(tmp_path):
    step, state, frozen, _, _ = setup()
    with MetricWriter(tmp_path / "m.jsonl") as writer:
        run_loop(
            step,
            state,
            batches_from(0),
            frozen=frozen,
            max_steps=5,
            writer=writer,
            evaluate=lambda number, now: {"eval/at": float(now.step)},
            evaluate_every=2,
        )
    table = rows(tmp_path / "m.jsonl")
    assert [row["eval/at"] for row in table if "eval/at" in row] == [0, 2, 4, 5]
    assert [row["step"] for row in table] == [0, 1, 2, 2, 3, 4, 4, 5, 5]


def broken(index):
    """Batch 4 has a non-finite loss."""
    for number, batch in enumerate(batches_from(0)):
        yield batch | {"factor": np.full(16, np.inf if number == index else 0.0, np.float32)}


def poisoned(params, frozen, batch, key, extra):
    from tests.training.helpers import loss

    terms, metrics = loss(params, frozen, batch, key, extra)
    return terms | {"extra": (batch["factor"].sum() * params["up"][0, 0] ** 2, 1.0, 1.0)}, metrics


@pytest.mark.parametrize("save_every", [0, 1, 2, 5])
def test_a_non_finite_step_stops_the_run_and_is_not_saved(tmp_path, save_every):
    step, state, frozen, _, _ = setup(loss=poisoned)
    with Checkpoints(tmp_path / "c", keep=9) as checkpoints, MetricWriter(tmp_path / "m.jsonl") as writer:
        with pytest.raises(TrainingError) as caught:
            run_loop(
                step,
                state,
                broken(4),
                frozen=frozen,
                max_steps=20,
                save_every=save_every,
                checkpoints=checkpoints,
                writer=writer,
                identify=lambda batch: batch["record"][:3],
            )
        assert str(caught.value) == "step 5: loss/extra is not finite; records [64, 65, 66], counted from 0"
        assert checkpoints.steps() == {0: [], 1: [1, 2, 3, 4], 2: [2, 4], 5: []}[save_every]
    table = rows(tmp_path / "m.jsonl")
    assert [row["step"] for row in table] == [1, 2, 3, 4, 5]
    assert (table[-1]["loss"], table[-1]["nonfinite"]) == (None, 1.0)


def test_a_broken_batch_loses_no_row(tmp_path):
    step, state, frozen, _, _ = setup()

    def batches():
        yield from (make_batch(index) for index in range(3))
        raise ValueError("row 48")

    with MetricWriter(tmp_path / "m.jsonl") as writer, pytest.raises(ValueError, match="row 48"):
        run_loop(step, state, batches(), frozen=frozen, max_steps=9, writer=writer)
    # The batch after next is read ahead: the error comes when batch 3 is asked for, with batch 2 not yet used.
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path, number):
    step, state, frozen, _, _ = setup()
    before = signal.getsignal(number)

    def observe(index, values):
        if index == 3:
            os.kill(os.getpid(), number)

    with Checkpoints(tmp_path) as checkpoints:
        result = run_loop(
            step, state, batches_from(0), frozen=frozen, max_steps=50, checkpoints=checkpoints, observe=observe
        )
        assert result.interrupted
        assert result.step == result.position == int(result.state.step) == 4
        assert checkpoints.steps() == [4]
    assert signal.getsignal(number) is before


def test_another_thread_leaves_signals_alone():
    step, state, frozen, _, _ = setup()
    handlers, results = [], []
    before = signal.getsignal(signal.SIGTERM)

    def work():
        results.append(
            run_loop(
                step,
                state,
                batches_from(0),
                frozen=frozen,
                max_steps=2,
                observe=lambda *_: handlers.append(signal.getsignal(signal.SIGTERM)),
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].step == 2
    assert handlers == [before, before]


def test_in_process_resume_is_exact(tmp_path):
    """20 steps = 10, saved, forgotten, restored, 10 more: every bit of the state."""
    whole_step, state, frozen, _, layout = setup("fsdp=4", accumulation=2)
    whole = run_loop(whole_step, state, batches_from(0), frozen=frozen, max_steps=20)
    step, state, frozen, _, layout = setup("fsdp=4", accumulation=2)
    with Checkpoints(tmp_path) as checkpoints:
        run_loop(step, state, batches_from(0), frozen=frozen, max_steps=10, checkpoints=checkpoints)
    step, state, frozen, _, layout = setup("fsdp=4", accumulation=2)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(lambda: state), layout)
        rest = run_loop(
            step,
            restored.state,
            batches_from(restored.position),
            frozen=frozen,
            max_steps=20,
            position=restored.position,
        )
    assert fingerprint(rest.state) == fingerprint(whole.state)
    assert rest.metrics == whole.metrics
    assert rest.position == 20


def test_batches_may_be_made_by_the_state(tmp_path):
    step, state, frozen, _, _ = setup()
    steps = []

    def make(state, position):
        steps.append((int(state.step), position))
        return make_batch(position), {"made": float(position)}

    with MetricWriter(tmp_path / "m.jsonl") as writer:
        made = run_loop(step, state, make, frozen=frozen, max_steps=4, writer=writer)
    assert steps == [(0, 0), (1, 1), (2, 2), (3, 3)]  # the state that every step before has updated
    assert [row["made"] for row in rows(tmp_path / "m.jsonl")] == [0, 1, 2, 3]
    step, state, frozen, _, _ = setup()
    read = run_loop(step, state, batches_from(0), frozen=frozen, max_steps=4)
    assert fingerprint(made.state) == fingerprint(read.state)


@pytest.mark.parametrize("made", [False, True], ids=["read", "made"])
def test_a_batch_that_cannot_be_made_loses_nothing(made, tmp_path):
    step, state, frozen, _, layout = setup()

    def make(state, position):
        if position == 3:
            raise ValueError("a broken batch")
        return make_batch(position), {}

    batches = make if made else (make(state, position)[0] for position in range(9))
    with Checkpoints(tmp_path / "c") as checkpoints, MetricWriter(tmp_path / "m.jsonl") as writer:
        with pytest.raises(ValueError, match="a broken batch"):
            run_loop(step, state, batches, frozen=frozen, max_steps=9, checkpoints=checkpoints, writer=writer)
        done = 3 if made else 2  # batches are read one ahead
        assert checkpoints.steps() == [done]
        restored = checkpoints.restore(setup()[1], layout)
    assert (restored.step, restored.position) == (done, done)
    assert [row["step"] for row in rows(tmp_path / "m.jsonl")] == list(range(1, done + 1))


def test_what_is_saved_may_be_more_than_the_state(tmp_path):
    step, state, frozen, _, _ = setup()
    with Checkpoints(tmp_path / "c") as checkpoints:
        result = run_loop(
            step,
            state,
            batches_from(0),
            frozen=frozen,
            max_steps=1,
            checkpoints=checkpoints,
            to_save=lambda state: dataclasses.replace(state, extra={"ahead": np.arange(3)}),
        )
        saved = dataclasses.replace(result.state, extra={"ahead": np.zeros(3, np.int64)})
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved)
        whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        restored = checkpoints.restore(like, jax.tree.map(lambda _: whole, like))
    assert restored.state.extra["ahead"].tolist() == [0, 1, 2]
    assert result.state.extra == {}
