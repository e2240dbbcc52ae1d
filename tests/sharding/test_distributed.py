"""Start-up: what is given, what launchers set, who does not come."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.sharding import initialize_distributed, started_together
from tests.processes import ROOT, free_port, run_together
from tests.tolerances import FLOAT32

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_one_process_needs_nothing():
    initialize_distributed()
    initialize_distributed(num_processes=1)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ({"coordinator": "localhost:1"}, "--num-processes"),
        ({"num_processes": 2}, "--coordinator"),
        ({"process_id": 0}, "--coordinator"),
        ({"coordinator": "localhost", "num_processes": 2, "process_id": 0}, "host:port"),
        ({"coordinator": "localhost:port", "num_processes": 2, "process_id": 0}, "host:port"),
        ({"coordinator": "localhost:84820", "num_processes": 2, "process_id": 0}, "host:port"),
        ({"coordinator": "localhost:1", "num_processes": 2, "process_id": 2}, "--process-id 2"),
    ],
)
def test_incomplete_flags_are_named(arguments, flag):
    with pytest.raises(InputError) as caught:
        initialize_distributed(**arguments)
    assert flag in str(caught.value)


def test_a_coordinator_that_is_not_there_is_named():
    address = f"localhost:{free_port()}"
    with pytest.raises(InputError, match=f"--coordinator {address}: not reached within 0.5 s"):
        initialize_distributed(address, 2, 1, timeout=0.5)


def test_a_port_that_is_taken_is_named():
    """JAX's own attempt to listen there mostly ends in a segmentation fault."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        program = f"from jaxalign.sharding import *; initialize_distributed({address!r}, 2, 0, timeout=1)"
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False,
        )  # fmt: skip
    assert found.returncode == 1, found.stderr
    assert found.stderr.splitlines()[-1] == (
        f"jaxalign.errors.InputError: --coordinator {address}: process 0 cannot listen there: Address already in use"
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "Slurm has started 4 processes; .*srun"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "Open MPI has started 2 processes; .*--coordinator",
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0"}, r"GKE TPU has started 4 .*jaxalign\[tpu\]"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "Kubernetes .*--coordinator.*kubernetes",
        ),
        ({"WORLD_SIZE": "8", "RANK": "1"}, "torchrun has started 8 processes; .*--coordinator"),
        ({"PMI_SIZE": "2"}, "MPI has started 2 processes"),
    ],
    ids=["slurm", "open mpi", "gke", "kubernetes", "torchrun", "mpi"],
)
def test_processes_that_cannot_join_do_not_each_train_alone(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{message}.*--num-processes 1"):
        initialize_distributed()
    initialize_distributed(num_processes=1)
    # What is for one process alone is told so too: not in a Slurm job outside of its tasks, nor of a job that says not
    # how many it has.
    assert started_together() == (not environment.keys() & {"SLURM_JOB_ID", "JOB_COMPLETION_INDEX"})


@pytest.mark.parametrize(
    "environment",
    [
        SLURM | {"SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {"WORLD_SIZE": "1"},
    ],
    ids=["slurm", "open mpi", "gke", "kubernetes", "torchrun"],
)
def test_a_launcher_of_one_process_needs_no_other(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    initialize_distributed()
    assert not started_together()


def joined(port, process, count, kind):
    """One of several processes: start up by what ``kind`` of launcher sets, agree on who is there, look at a folder."""
    environment = {
        "slurm": SLURM | {
            "SLURM_NTASKS": count, "SLURM_PROCID": process, "SLURM_LOCALID": process, "SLURM_JOB_ID": port,
        },
        # The address of the launcher; its job's number makes the port.
        "open mpi": {
            "OMPI_MCA_orte_hnp_uri": f"{4096 * port}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": count,
            "OMPI_COMM_WORLD_RANK": process, "OMPI_COMM_WORLD_LOCAL_RANK": process,
        },
        "flags": {},
    }[kind]  # fmt: skip
    os.environ |= {name: str(value) for name, value in environment.items()}
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    if kind == "flags":
        initialize_distributed(f"localhost:{port}", count, process)
    else:
        initialize_distributed()
    initialize_distributed()  # once more changes nothing
    assert (jax.process_index(), jax.process_count()) == (process, count)
    from jaxalign.recipes import _shared
    from jaxalign.sharding import exchange, parse_mesh, row_share

    assert row_share(parse_mesh("data=2")) == row_share(parse_mesh("fsdp=2")) == (process, 2)
    assert row_share(parse_mesh("tensor=2")) == (0, 1)

    assert exchange("") == ["", ""]
    assert exchange("né" * process) == ["", "né"]
    assert exchange(f"{process}") == ["0", "1"]

    def raised(call):
        try:
            call()
        except (InputError, ZeroDivisionError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def broken():
        assert process == 0, "only the first is asked"
        return 1 / 0

    assert _shared.on_first_process(lambda: np.arange(3.0) if process == 0 else broken(), 3).tolist() == [0, 1, 2]
    assert "division by zero" in raised(lambda: _shared.on_first_process(broken, 3))
    _shared.check_agreement({"beta": 0.1, "tokenised data": "a"})
    nested = {"optimizer": {"learning_rate": 1e-3 * (process + 1), "beta1": 0.9}, "tokenised data": process}
    assert raised(lambda: _shared.check_agreement(nested)) == (
        "InputError: --learning-rate: process 1 was given 0.002, process 0 0.001; all processes must have the same"
    )
    same = {"alpha": 1, "tokenised data": process}
    assert raised(lambda: _shared.check_agreement(same)).startswith(
        "InputError: tokenised data: process 1 was given another than process 0;"
    )
    assert "process 1" in raised(lambda: _shared.check_agreement({f"name {process}": 1, "other": 2}))
    folder = Path(tempfile.gettempdir()) / f"not-there-{port}"
    try:
        _shared.check_shared(folder)
        if process == 0:  # who takes the marker away
            assert list(folder.iterdir()) == []
        _shared.PATIENCE = 0.5
        own = raised(lambda: _shared.check_shared(folder / str(process)))
        assert "process 1 does not see what process 0 writes there" in own
    finally:
        _shared.on_first_process(lambda: _remove(folder), 1)
    assert "--output-dir" in raised(lambda: _shared.check_shared(Path("/proc/nothing")))


def _remove(folder):
    import shutil

    shutil.rmtree(folder)
    return np.zeros(1, np.float32)


@pytest.mark.parametrize("kind", ["slurm", "open mpi", "flags"])
def test_two_processes_find_each_other(kind):
    for index, output in enumerate(run_together("tests.sharding.test_distributed:joined", 2, kind)):
        (line,) = [line for line in output.splitlines() if "joined by" in line]
        name = {"slurm": "Slurm", "open mpi": "Open MPI", "flags": "flags"}[kind]
        assert line.endswith(f"joined by {name}: process {index} of 2, 1 of 2 devices here")


def test_processes_that_do_not_come_are_waited_for_and_then_said(tmp_path):
    """JAX itself ends the process with a stack trace of its own."""
    address = f"localhost:{free_port()}"
    program = f"from jaxalign.sharding import *; initialize_distributed({address!r}, 2, 0, timeout=1)"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        f"--coordinator {address}: not all of --num-processes 2 have come within 1 s: see the logs of the others"
    ]


def permuted(port, process, count):
    """One of two processes whose devices alternate on the mesh: batches, and what is computed of each example."""
    import jax

    jax.config.update("jax_num_cpu_devices", 2)
    initialize_distributed(f"localhost:{port}", count, process)
    from jaxalign import recipes, sharding, training
    from tests.recipes import toy

    devices = jax.devices()
    mesh = sharding.make_mesh(data=4, devices=[devices[0], devices[2], devices[1], devices[3]])
    assert sharding.row_share(mesh) == (process, 2)
    assert sharding.row_order(mesh) == [0, 2, 1, 3]
    placed = training.put_batch(np.arange(8)[process * 4 :][:4], mesh)
    assert sharding.to_host(placed).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    examples = toy.examples(toy.demonstrations())
    shape = toy.SHAPES["llama"]
    params = sharding.shard_tree(toy.params("llama"), sharding.replicated(mesh))
    found = recipes.example_log_probs(shape, params, examples, mesh=mesh, batch_size=4)
    print(json.dumps([row.tolist() for row in found]))


def test_a_mesh_in_another_order_than_its_processes():
    from jaxalign import recipes
    from jaxalign.sharding import make_mesh
    from tests.recipes import toy

    expected = recipes.example_log_probs(
        toy.SHAPES["llama"], toy.params("llama"), toy.examples(toy.demonstrations()), mesh=make_mesh(fsdp=1)
    )
    for output in run_together("tests.sharding.test_distributed:permuted", 2):
        for found, row in zip(json.loads(output.splitlines()[-1]), expected, strict=True):
            np.testing.assert_allclose(found, row, rtol=FLOAT32, atol=FLOAT32)
