"""Which checkpoints stay, and saves that fail."""

import json

import jax
import pytest

from jaxalign.errors import InputError
from jaxalign.training import CheckpointError, Checkpoints, MetricWriter, Retention, TrainingError, run_loop
from tests.training.helpers import batches_from, setup


def keep(folder, retention, values, steps=10):
    """Train, save every step with ``values[step]`` as a metric; the steps that are there at the end."""
    step, state, frozen, _, _ = setup()
    with Checkpoints(folder, keep=retention) as checkpoints:
        for index, batch in zip(range(1, steps + 1), batches_from(0), strict=False):
            state, _ = step(state, frozen, jax.device_put(batch))
            checkpoints.save(index, state, position=index, metrics=values.get(index, {}))
    return checkpoints.steps()


def test_the_newest_the_round_and_the_best(tmp_path):
    values = {index: {"eval/loss": abs(index - 3.0)} for index in (2, 3, 7, 8)} | {5: {"eval/loss": float("nan")}}
    assert keep(tmp_path / "a", Retention(1), values) == [10]
    assert keep(tmp_path / "b", Retention(2, every=4), values) == [4, 8, 9, 10]
    assert keep(tmp_path / "c", Retention(1, best="eval/loss"), values) == [3, 10]
    accuracy = {index: {"eval/rewards/accuracy": 0.5} for index in (2, 6)}
    assert keep(tmp_path / "d", Retention(1, every=5, best="eval/rewards/accuracy"), accuracy) == [2, 5, 10]


def test_a_run_that_continues_knows_what_was_best(tmp_path):
    retention = {"newest": 1, "best": "eval/loss"}
    values = {2: {"eval/loss": 1.0}, 4: {"eval/loss": 2.0}}
    assert keep(tmp_path, Retention(**retention), values, steps=4) == [2, 4]
    (tmp_path / "4" / "notes" / "metadata").write_text("{")  # damaged: it does not compete
    _, state, _, _, _ = setup()
    with Checkpoints(tmp_path, keep=Retention(**retention)) as checkpoints:
        for index, loss in ((5, 3.0), (6, 0.5), (7, 0.7)):
            checkpoints.save(index, state, position=index, metrics={"eval/loss": loss})
            checkpoints.wait()
            assert checkpoints.steps() == {5: [2, 5], 6: [6], 7: [6, 7]}[index]


def test_a_metric_that_is_not_there_is_named_at_once(tmp_path):
    step, state, frozen, _, _ = setup()
    with (
        Checkpoints(tmp_path, keep=Retention(best="eval/accuracy")) as checkpoints,
        pytest.raises(InputError, match=r"--keep-best-by eval/accuracy: .*; there are eval/loss"),
    ):
        run_loop(
            step,
            state,
            batches_from(0),
            frozen=frozen,
            max_steps=5,
            checkpoints=checkpoints,
            evaluate=lambda *_: {"eval/loss": 1.0},
        )
    with pytest.raises(InputError, match="--keep-checkpoints 0"):
        Retention(0)


def break_saving(checkpoints, monkeypatch, error):
    """Writing the arrays of the next checkpoint fails in the background, once the save has returned."""
    finalize = checkpoints._manager._finalize

    def fail(*arguments, **options):
        finalize(*arguments, **options)
        raise error

    monkeypatch.setattr(checkpoints._manager, "_finalize", fail)


@pytest.mark.parametrize("max_steps", [4, 9])
def test_a_save_that_failed_in_the_background_is_heard(tmp_path, monkeypatch, max_steps):
    """At the next save, or at the end if there is none."""
    step, state, frozen, _, _ = setup()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        break_saving(checkpoints, monkeypatch, OSError(28, "No space left on device"))
        with pytest.raises(CheckpointError) as caught:
            run_loop(
                step,
                state,
                batches_from(0),
                frozen=frozen,
                max_steps=max_steps,
                save_every=4,
                checkpoints=checkpoints,
            )
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: the checkpoint of step 4 could not be saved: No space left on device")
    assert "\n" not in message


def test_with_a_step_that_is_not_finite_both_are_heard(tmp_path, monkeypatch):
    from tests.training.test_loop import broken, poisoned

    step, state, frozen, _, _ = setup(loss=poisoned)
    with Checkpoints(tmp_path) as checkpoints:
        break_saving(checkpoints, monkeypatch, OSError(28, "No space left on device"))
        with pytest.raises(TrainingError, match=r"step 5: loss/extra is not finite; and .*No space left"):
            run_loop(step, state, broken(4), frozen=frozen, max_steps=9, save_every=4, checkpoints=checkpoints)


def test_an_evaluation_that_a_signal_came_before_is_made_up_for(tmp_path):
    """Stopped at a step that is to be evaluated: the run that continues evaluates first, and writes the same rows."""
    import os
    import signal

    def run(folder, stop_at=0):
        step, state, frozen, _, layout = setup()
        with Checkpoints(folder / "c") as checkpoints:
            restored = checkpoints.restore(jax.eval_shape(lambda: state), layout)
            start = restored.step if restored else 0
            with MetricWriter(folder / "m.jsonl", step=start) as writer:
                return run_loop(
                    step,
                    restored.state if restored else state,
                    batches_from(start),
                    frozen=frozen,
                    max_steps=9,
                    position=start,
                    checkpoints=checkpoints,
                    writer=writer,
                    evaluate=lambda number, state: {"eval/at": float(number)},
                    evaluate_every=3,
                    # The metrics of step 5 arrive while step 6 runs, after which an evaluation is due.
                    observe=lambda number, values: number == stop_at and os.kill(os.getpid(), signal.SIGTERM),
                    evaluation_due=restored is not None and restored.evaluation_due,
                )

    def rows(folder):
        table = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "seconds"} for row in table]

    (tmp_path / "a").mkdir()
    run(tmp_path / "a")
    stopped = run(tmp_path / "b", stop_at=5)
    assert (stopped.step, stopped.interrupted) == (6, True)
    assert rows(tmp_path / "b")[-1]["step"] == 6
    assert "eval/at" not in rows(tmp_path / "b")[-1]
    run(tmp_path / "b")
    assert rows(tmp_path / "b") == rows(tmp_path / "a")


def test_a_row_that_cannot_be_written_names_the_file(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path / "m.jsonl")
    writer.write(1, {"loss": 1.0})

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.write(2, {"loss": 1.0})
    assert caught.value.filename == str(tmp_path / "m.jsonl")
