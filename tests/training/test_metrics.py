import json

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.training import MetricWriter, means, read_losses, read_rows


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_divide_and_leave_empty_counts_out():
    assert means({"a": (np.float32(3), np.float32(2)), "b": (np.float32(0), np.float32(0))}) == {"a": 1.5}


def test_rows_are_there_before_the_file_is_closed(tmp_path):
    writer = MetricWriter(tmp_path / "run" / "metrics.jsonl")
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": float("nan"), "accuracy": 1.0})
    assert rows(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "accuracy": 1.0},
    ]
    writer.close()


def test_a_resumed_run_continues_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricWriter(path) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # cut short by a kill
    with MetricWriter(path, step=5) as writer:
        writer.write(6, {"loss": -6.0})
    assert [(row["step"], row["loss"]) for row in rows(path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, -6)]


NO_ROWS = ["1", "null", "[]", '"step"', '{"loss": 1.0}', '{"step": null}', '{"step": 8, "lo', "\xff"]


@pytest.mark.parametrize("last", NO_ROWS)
def test_a_last_line_that_is_no_row_is_dropped(tmp_path, last):
    path, whole = tmp_path / "metrics.jsonl", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole) + last, encoding="latin-1")
    assert read_rows(path) == whole
    assert read_losses(path, 2) == [3.0, 2.0]
    MetricWriter(path, step=2).close()
    assert rows(path) == whole
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_run_from_the_beginning_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval/loss": 1}\n{"step": 1, "loss": 1}\n')
    MetricWriter(path, step=0).close()
    assert path.read_text() == ""


@pytest.mark.parametrize("broken", ["not json", *NO_ROWS])
def test_a_broken_row_is_named(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{broken}\n{{"step": 2}}\n', encoding="latin-1")
    with pytest.raises(InputError, match="row 2 is not a JSON object with a step"):
        MetricWriter(path, step=2)
    assert broken in path.read_text(encoding="latin-1")


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  (the format read below is its)

    with MetricWriter(tmp_path / "m.jsonl", tensorboard=tmp_path / "board") as writer:
        writer.write(1, {"loss": 0.25, "note": "text is not a scalar"})
        writer.write(2, {"loss": 0.125})
    (path,) = (tmp_path / "board").iterdir()
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    assert found == [(1, "loss", 0.25), (2, "loss", 0.125)]
