"""What loading and saving hold beyond the parameters, measured in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "load_memory.py"
PYTHON_OBJECTS = 4 << 20  # headers, jaxprs, threads: what is no tensor
ALLOCATOR = 48 << 20  # what the process's peak moves by besides: code loaded late, arenas, stacks


def run(*arguments):
    # Pages of 4 kB, so that the resident memory is what was asked for.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sized")
    run("write", path)
    return path


@pytest.mark.parametrize(("devices", "dtype"), [(1, "float32"), (1, "bfloat16"), (4, "float32")])
def test_loading_holds_one_shard_of_one_leaf_beyond_the_parameters(folder, devices, dtype):
    found = run("load", folder, devices, dtype)
    assert found["parameters"] > 90 * 10**6 // (2 if dtype == "bfloat16" else 1)
    assert found["largest_shard"] == found["largest"] // devices
    # Of numpy's arrays; on a CPU small parameters are such arrays themselves, large ones are pages of their own.
    assert found["kept"] <= found["parameters"] + PYTHON_OBJECTS
    assert found["peak"] - found["kept"] <= found["largest_shard"] + PYTHON_OBJECTS
    # The mapped file counts as resident too; a second copy of the parameters would be twice the bound.
    assert found["resident"] <= found["parameters"] + found["largest_shard"] + ALLOCATOR


@pytest.mark.parametrize("devices", [1, 4])
def test_saving_holds_one_tensor_of_one_layer(folder, devices):
    found = run("save", folder, devices)
    assert found["largest_layer"] < found["largest"] / 4
    # One gathered from its shards and one in the file's order of axes.
    assert found["peak"] <= 2 * found["largest_layer"] + PYTHON_OBJECTS
    assert found["kept"] <= PYTHON_OBJECTS
    assert found["resident"] <= 2 * found["largest_layer"] + ALLOCATOR
