"""The launch examples, run with commands of the clusters that only write down what they were asked."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster, slurm_cluster

from jaxalign.cli._flags import parse
from jaxalign.recipes.dpo import DPOConfig
from jaxalign.sharding import _distributed

LAUNCH = Path(__file__).parents[2] / "launch"
FLAGS = [
    "--mesh", "data=1,fsdp=-1", "--dtype", "bfloat16", "--batch-size", "64", "--max-length", "1024", "--beta", "0.1",
    "--save-every", "200", "--step-timeout", "600",
]  # fmt: skip
GIVEN = {"MODEL": "models/start", "DATASET": "pairs of 2026.jsonl", "OUTPUT_DIR": "runs/dpo"}


@pytest.fixture
def shell(tmp_path):
    """Run a script; returns what ``jaxalign``, ``gcloud`` and ``srun`` were called with.

    ``jaxalign`` is in the environment ``~/venv`` and nowhere else; a call that copies an archive ends with its names.
    """
    log = tmp_path / "calls"
    program = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys, tarfile
call = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
packed = [tarfile.open(name).getnames() for name in call if pathlib.Path(name).is_file() and name.endswith(".tar.gz")]
with open({str(log)!r}, "a") as log:
    log.write(json.dumps(call + packed) + "\\n")
if sys.argv[0].endswith("srun"):
    subprocess.run(sys.argv[2:], check=True)
if sys.argv[0].endswith("jaxalign") and "STOPPED" not in os.environ:
    pathlib.Path("{GIVEN["OUTPUT_DIR"]}", "final").mkdir(parents=True, exist_ok=True)
"""
    for name in ("venv/bin/jaxalign", "bin/gcloud", "bin/srun"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)

    def run(*command, **environment):
        log.unlink(missing_ok=True)
        known = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)} | GIVEN | environment
        subprocess.run(command, env=known, check=True, cwd=tmp_path, timeout=60)
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def config_of(call) -> DPOConfig:
    """What the real parser makes of the call; the flags are those of every example."""
    assert call[:2] == ["jaxalign", "dpo"]
    assert call[8 : 8 + len(FLAGS)] == FLAGS
    config = parse(DPOConfig, call[2:], program="jaxalign dpo", summary="")
    assert config.stop_deadline  # a run that hangs while it stops would keep its machines
    assert (config.model, config.dataset, str(config.output_dir)) == tuple(GIVEN.values())
    return config


def test_tpu_vm(shell, tmp_path):
    script = LAUNCH / "tpu_vm.sh"
    here = {"TPU": "my-slice", "ZONE": "us-central1-a"}
    (call,) = shell(script, "run", **here)
    assert call[:8] == [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-slice", "--zone=us-central1-a", "--worker=all",
    ]  # fmt: skip
    command = call[8].removeprefix("--command=")
    # As a host runs it, but in front.
    foreground = command.replace(" &", "").replace("setsid nohup ", "")
    assert foreground.count("< /dev/null") == 1
    config_of(shell("bash", "-ec", foreground)[0])
    for stays in (".git/HEAD", ".venv/bin/python", "runs/dpo/metrics.jsonl", "models/start/config.json"):
        (tmp_path / stays).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stays).touch()
    for goes in ("pyproject.toml", "jaxalign/models/__init__.py"):
        (tmp_path / goes).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / goes).touch()
    copied, installed = shell(script, "install", **here)
    assert copied[4] == "scp"
    assert {"./pyproject.toml", "./jaxalign/models/__init__.py"} <= set(copied[-1])
    assert not {name for name in copied[-1] if name.split("/")[1:2] in ([".git"], [".venv"], ["runs"], ["models"])}
    subprocess.run(["bash", "-n", "-c", installed[-1].removeprefix("--command=")], check=True)
    assert "$HOME/jaxalign[tpu]" in installed[-1]
    assert "--worker=0" in shell(script, "watch", **here)[0]
    assert "pkill -TERM" in shell(script, "stop", **here)[0][-1]
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([script, "run"], env={"PATH": os.environ["PATH"]}, check=True, capture_output=True)


def test_slurm(shell, monkeypatch, tmp_path):
    script = LAUNCH / "slurm.sbatch"
    srun, call = shell("bash", script)
    assert srun[0] == "srun"
    (tmp_path / "venv").rename(tmp_path / "own")
    assert shell("bash", script, VENV=str(tmp_path / "own"))[1] == call
    deadline = config_of(call).stop_deadline
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH --") and "=" in line
    )
    assert deadline < int(asked["signal"].removeprefix("TERM@"))
    nodes, tasks = int(asked["nodes"]), int(asked["ntasks-per-node"])
    # What srun then sets in the second task.
    names = {
        "JOB_ID": "70001", "NTASKS": nodes * tasks, "PROCID": 1, "LOCALID": 0, "STEP_NODELIST": "node[07-08]",
        "STEP_NUM_NODES": nodes, "STEP_TASKS_PER_NODE": f"{tasks}(x{nodes})", "GPUS_ON_NODE": asked["gpus-per-node"],
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    cluster = slurm_cluster.SlurmCluster
    assert cluster.is_env_present()
    assert (cluster.get_process_count(), cluster.get_process_id()) == (2, 1)
    assert cluster.get_coordinator_address(5, None).startswith("node07:")
    assert _distributed._launcher() == _distributed._Launcher("Slurm", 2)
    assert _distributed._gpus_of_the_node() == list(range(8))


def test_gke(shell, monkeypatch, tmp_path):
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = job["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    # With more than one job, JAX's numbers of processes would be those of each job alone.
    assert replicated["replicas"] == 1
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    pod = spec["template"]["spec"]
    grace = pod["terminationGracePeriodSeconds"]
    (container,) = pod["containers"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert rows * columns == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    values = {one["name"]: one["value"] for one in container["env"]}
    assert values.keys() == GIVEN.keys()
    assert all(any(value.startswith(mount) for mount in mounts) for value in values.values())
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    image = {"PATH": f"{tmp_path / 'venv' / 'bin'}:/usr/bin:/bin"}  # in which jaxalign is installed
    with pytest.raises(subprocess.CalledProcessError):  # a run that a signal stopped has not completed the job
        shell(*container["command"], STOPPED="1", **image)
    assert config_of(shell(*container["command"], **image)[0]).stop_deadline < grace
    # What GKE then sets in the third pod.
    name = f"{job['metadata']['name']}-{replicated['name']}-0"
    hosts = [f"{name}-{index}.{job['metadata']['name']}" for index in range(spec["parallelism"])]
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(hosts))
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    monkeypatch.setenv("TPU_LIBRARY_PATH", __file__)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    # The metadata server, which knows of no second slice.
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)
    monkeypatch.setattr(cloud_tpu_cluster.BaseTpuCluster, "wait_for_coordinator", lambda *_: None)
    cluster = cloud_tpu_cluster.GkeTpuCluster
    assert cluster.is_env_present()
    assert (cluster.get_process_count(), cluster.get_process_id()) == (4, 2)
    (port,) = container["ports"]
    assert cluster.get_coordinator_address(5, None) == f"{hosts[0]}:{port['containerPort']}"
    assert _distributed._launcher() == _distributed._Launcher("GKE TPU", 4)


def test_skypilot(shell):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (mount,) = task["file_mounts"]
    assert all(value.startswith(mount) for value in task["envs"].values())
    assert task["envs"].keys() == GIVEN.keys()
    # A bucket made before: SkyPilot makes none with a hierarchical namespace.
    assert task["file_mounts"][mount] == {"source": "gs://my-jaxalign-runs", "mode": "MOUNT"}
    (call,) = shell(
        "bash", "-c", task["run"], SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
        SKYPILOT_NUM_NODES=str(task["num_nodes"]), SKYPILOT_NODE_RANK="1",
    )  # fmt: skip
    config = config_of(call)
    assert (config.coordinator, config.num_processes, config.process_id) == ("10.0.0.1:8476", 2, 1)
    assert config.stop_deadline < 30  # seconds from SkyPilot's SIGTERM to its SIGKILL
    assert "[cuda]" in task["setup"]


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_every_file_is_tried_and_every_script_parses(path):
    assert f"def test_{path.name.split('.')[0].removesuffix('_jobset')}(" in Path(__file__).read_text()
    script = path.read_text()
    if path.suffix == ".yaml":
        task = yaml.safe_load(script)
        script = "\n".join(task.get(name, "") for name in ("setup", "run"))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
