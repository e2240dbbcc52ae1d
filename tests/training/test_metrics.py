import json

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.training import MetricWriter, means


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


def test_a_run_from_the_beginning_starts_the_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "eval/loss": 1}\n{"step": 1, "loss": 1}\n')
    MetricWriter(path, step=0).close()
    assert path.read_text() == ""


def test_a_broken_row_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(InputError, match="row 2"):
        MetricWriter(path, step=2)
    assert "not json" in path.read_text()


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
