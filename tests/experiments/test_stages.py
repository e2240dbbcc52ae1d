"""The stage cache: nothing recomputed, nothing half-written, nothing stale."""

import io
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

from experiments._stages import ARRAYS, JSON, JSON_LINES, TREE, Stages, digest
from jaxalign.errors import InputError

ROOT = Path(__file__).parents[2]


class Count:
    """A stage's function that counts its calls."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self, report):
        self.calls += 1
        report(1, 2, "half")
        return self.value


def stages(root, **options):
    return Stages(root, console=Console(file=io.StringIO(), width=120), **options)


def test_second_run_reads_the_first(tmp_path):
    compute = Count({"loss": 0.1, "text": "naïve"})
    first = stages(tmp_path).stage("fit", {"seed": 0}, compute, *JSON)
    second = stages(tmp_path).stage("fit", {"seed": 0}, compute, *JSON)
    assert first == second == {"loss": 0.1, "text": "naïve"}
    assert compute.calls == 1


def test_other_inputs_and_other_names_are_computed(tmp_path):
    compute = Count(1)
    for name, inputs in (("a", {"seed": 0}), ("a", {"seed": 1}), ("b", {"seed": 0}), ("a", {"seed": 0})):
        stages(tmp_path).stage(name, inputs, compute, *JSON)
    assert compute.calls == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_crash_in_compute_or_save_leaves_nothing(tmp_path):
    def crash(report):
        raise RuntimeError("boom")

    def half(folder, value):
        (folder / "part").write_text("x")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="boom"):
        stages(tmp_path).stage("fit", {}, crash, *JSON)
    with pytest.raises(RuntimeError, match="disk full"):
        stages(tmp_path).stage("fit", {}, Count(1), half, JSON.load)
    assert list(tmp_path.iterdir()) == []
    assert stages(tmp_path).stage("fit", {}, Count(2), *JSON) == 2


def test_killed_while_saving_is_computed_again(tmp_path):
    """A process that dies without unwinding, in the middle of a save, does not leave a finished folder."""
    script = f"""
import os
from experiments._stages import JSON, Stages
def save(folder, value):
    JSON.save(folder, value)
    os._exit(9)
stages = Stages({str(tmp_path)!r})
stages.stage("first", {{}}, lambda report: 1, *JSON)
stages.stage("second", {{}}, lambda report: 2, save, JSON.load)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True).returncode == 9
    first, second = Count(10), Count(20)
    again = stages(tmp_path)
    assert again.stage("first", {}, first, *JSON) == 1
    assert again.stage("second", {}, second, *JSON) == 20
    assert (first.calls, second.calls) == (0, 1)


def test_another_process_may_finish_first(tmp_path):
    run = stages(tmp_path)

    def slow(report):
        stages(tmp_path).stage("fit", {}, Count("theirs"), *JSON)
        return "ours"

    assert run.stage("fit", {}, slow, *JSON) == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_returned_is_what_was_read_back(tmp_path):
    """So the first run and later ones see the same: a tuple saved as JSON is a list in both."""
    assert stages(tmp_path).stage("fit", {}, Count((1, 2)), *JSON) == [1, 2]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (ARRAYS, {"a": np.arange(6.0).reshape(2, 3), "mask": np.array([True, False])}),
        (TREE, {"embed": {"tokens": np.arange(4, dtype=ml_dtypes.bfloat16)}, "norm": np.ones(2, np.float32)}),
    ],
)
def test_arrays_come_back_exactly(tmp_path, codec, value):
    codec.save(tmp_path, value)
    back = codec.load(tmp_path)

    def same(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                same(a[key], b[key])
        else:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)

    same(value, back)


def test_rows_come_back_exactly(tmp_path):
    rows = [{"text": "line\nbreak \u2028 “quotes”", "score": 0.1}, {"text": "", "score": -1e300}]
    JSON_LINES.save(tmp_path, rows)
    assert JSON_LINES.load(tmp_path) == rows


def test_objects_are_never_pickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        ARRAYS.save(tmp_path, {"a": np.array([object()])})


def test_digest_tells_values_and_dtypes_apart():
    arrays = [np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)), np.ones(2)]
    parts = [*([a] for a in arrays), ["ab"], ["a", "b"], [["a", "b"]], [{"a": 1}], [{"a": 1.5}], [None]]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_inputs_that_are_not_json_are_named(tmp_path):
    with pytest.raises(InputError, match="stage fit"):
        stages(tmp_path).stage("fit", {"model": object()}, Count(1), *JSON)


def test_progress_is_printed(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments._stages._PLAIN_SECONDS", 0.0)
    out = io.StringIO()
    run = Stages(tmp_path, total=2, console=Console(file=out, width=120))
    run.stage("sample", {}, Count(1), *JSON)
    run.stage("sample", {}, Count(1), *JSON)
    text = out.getvalue()
    assert "[1/2] sample: 1/2 (half), 0:00 elapsed, 0:00 left" in text
    assert "[1/2] sample: done in 0:00" in text
    assert "[2/2] sample: kept from an earlier run" in text


def test_a_terminal_gets_a_bar(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=True, force_interactive=True)
    run = Stages(tmp_path, total=1, console=console)
    assert run.stage("sample", {}, Count(5), *JSON) == 5
    assert "[1/1] sample" in out.getvalue()
    assert "half" in out.getvalue()


def test_a_run_that_is_killed_finds_its_folder_again_and_leaves_none_behind(tmp_path):
    stages, steps = Stages(tmp_path / "stages", console=Console(file=io.StringIO())), []

    def compute(report, folder):
        folder.mkdir(parents=True, exist_ok=True)
        steps.append(len(list(folder.iterdir())))
        (folder / str(len(steps))).touch()
        if len(steps) < 3:
            raise KeyboardInterrupt
        return len(steps)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stages.trained("run", {"seed": 0}, compute, *JSON)
    assert (tmp_path / "runs" / stages.folder("run", {"seed": 0}).name).is_dir()
    assert stages.trained("run", {"seed": 0}, compute, *JSON) == 3
    assert steps == [0, 1, 2]
    assert not list((tmp_path / "runs").iterdir())
    assert stages.trained("run", {"seed": 0}, compute, *JSON) == 3
    assert len(steps) == 3
