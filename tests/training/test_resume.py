"""Exact resume of a program that is killed, and a run on two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tolerances import FLOAT32

ROOT = Path(__file__).parents[2]


def start(folder, *arguments):
    command = [sys.executable, str(ROOT / "tests" / "training" / "run_script.py"), str(folder), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder, *arguments, code=0):
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return json.loads((folder / "result.json").read_text()) if code == 0 else None


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Twenty steps in one go."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), rows(folder)


def test_killed_twice_is_bit_for_bit_the_unbroken_run(whole, tmp_path):
    run(tmp_path, "--die", 9, code=-signal.SIGKILL)  # while checkpoint 8 may still be written
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))
    run(tmp_path, "--die", 14, code=-signal.SIGKILL)
    result = run(tmp_path)
    assert result["start"] in (8, 12)
    expected, expected_rows = whole
    assert result["fingerprint"] == expected["fingerprint"]
    assert (result["step"], result["position"]) == (20, 20)
    assert rows(tmp_path) == expected_rows


def test_sigterm_saves_and_exits_cleanly(whole, tmp_path):
    result = run(tmp_path, "--term", 6)
    assert (result["interrupted"], result["step"]) == (True, 7)
    result = run(tmp_path)
    assert (result["interrupted"], result["start"]) == (False, 7)
    assert result["fingerprint"] == whole[0]["fingerprint"]
    assert rows(tmp_path) == whole[1]


def test_a_finished_run_does_nothing_more(whole, tmp_path):
    run(tmp_path, "--steps", 8)
    again = run(tmp_path, "--steps", 8)
    assert (again["start"], again["step"]) == (8, 8)
    assert len(rows(tmp_path)) == 8


def pair(folder, mesh, *arguments):
    """Two processes of two devices, to their end; what they came to."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    common = ("--mesh", mesh, "--devices", 2, "--coordinator", f"localhost:{port}", "--processes", 2)
    processes = [start(folder, *common, "--process", index, *arguments) for index in (0, 1)]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:  # one alone would wait for the other
        for process in processes:
            process.kill()
    return json.loads((folder / "result.json").read_text())


def test_two_processes_save_resume_and_agree(whole, tmp_path):
    """The same losses; stopped by SIGTERM to one of them, resumed on one process."""
    first = pair(tmp_path, "data=2,fsdp=2", "--term", 6)
    assert first["interrupted"]
    assert 7 <= first["step"] < 20
    # Now the processes differ along tensor only: both hold every row.
    second = pair(tmp_path, "tensor=4", "--steps", 16)
    assert (second["start"], second["step"]) == (first["step"], 16)
    last = run(tmp_path, "--mesh", "fsdp=1")
    assert (last["start"], last["step"]) == (16, 20)
    table, expected = rows(tmp_path), whole[1]
    assert [row["step"] for row in table] == list(range(1, 21))
    # Adam amplifies rounding where gradients are near zero: the first losses and gradients are compared.
    for after, before in list(zip(table, expected, strict=True))[:3]:
        for name in ("loss", "grad_norm", "accuracy"):
            assert after[name] == pytest.approx(before[name], rel=FLOAT32)
    assert table[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e3 * FLOAT32)


@pytest.mark.parametrize("who", [["--alone"], []], ids=["one", "both"])
def test_ctrl_c_on_several_processes_saves_and_exits_cleanly(tmp_path, who):
    result = pair(tmp_path, "fsdp=4", "--interrupt", 6, *who)
    assert result["interrupted"]
    assert 7 <= result["step"] < 20
    again = pair(tmp_path, "fsdp=4", "--steps", 16)
    assert (again["start"], again["step"]) == (result["step"], 16)
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 17))


@pytest.mark.parametrize(("count", "number"), [(1, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_second_signal_ends_a_process_at_once(count, number):
    program = f"""
import os, signal
import jax
from jaxalign.training._signals import StopRequest
jax.process_count = lambda: {count}
if {count} == 2:
    signal.signal(signal.SIGTERM, lambda *_: None)
with StopRequest():
    os.kill(os.getpid(), {number})
    print("goes on", flush=True)
    try:
        os.kill(os.getpid(), {number})
    finally:
        print("cleans up", flush=True)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert found.returncode == -number
    assert found.stdout.split("\n")[:-1] == ["goes on"]


def test_a_second_ctrl_c_does_not_wait_for_a_save_that_hangs(tmp_path):
    process = start(tmp_path, "--interrupt", 2, "--hang-save")
    try:
        wait_until((tmp_path / "hangs").exists, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT, errors


def wait_until(happens, process):
    end = time.monotonic() + 120
    while not happens():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)
