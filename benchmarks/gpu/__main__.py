"""Everything that wants an NVIDIA GPU, in one command, without network.

    python -m benchmarks.gpu --output FOLDER                        (about 25 minutes on one H100 or H200)
    python -m benchmarks.gpu --output FOLDER --parts attention steps torch
    python -m benchmarks.gpu --output FOLDER --parts tests          (the test suite with JAX on the GPU)

attention   cuDNN against XLA in bfloat16: values and gradients within tolerance, and the time of both
steps       SFT and DPO steps of a Llama-3.2-1B and a Pythia-1.4B shape: tokens/s, model-FLOPs utilisation, peak memory
sampling    the sampler on those shapes, bfloat16: refilled rows against plain padded batches, share of bandwidth
torch       the same workloads in torch (TRL where it is installed, else a plain loop over transformers' model)
tests       ``pytest tests`` with ``JAXALIGN_TEST_PLATFORM=gpu``

Every part is a process of its own (a framework's memory pool is not another's). FOLDER gets ``results.jsonl`` with
every figure, ``report.md`` with the tables, date, hardware and versions, and a log a part; a part that fails is named
in the report and in the exit status.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.gpu._tables import attention_table, sampling_table, steps_table
from benchmarks.gpu._workloads import SHAPES, TASKS

PARTS = ("attention", "steps", "sampling", "torch", "tests")
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
PACKAGES = ("jax", "jaxlib", *CUDA_PLUGINS, "flax", "optax", "numpy", "torch", "transformers", "trl")
LIMIT_S = {"attention": 600, "steps": 600, "sampling": 600, "torch": 600, "tests": 2400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results, report and logs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=12, help="train steps a workload, the first two not counted")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    workloads = [(shape, task) for shape in SHAPES for task in TASKS]
    commands: dict[str, list[str]] = {}
    if "attention" in args.parts:
        commands["attention"] = ["-m", "benchmarks.gpu.attention"]
    if "sampling" in args.parts:
        for shape in SHAPES:
            commands[f"sampling-{shape}"] = ["-m", "benchmarks.gpu.sampling", "--shape", shape]
    for part, module in (("steps", "benchmarks.gpu.steps"), ("torch", "benchmarks.gpu.torch_steps")):
        if part in args.parts:
            for shape, task in workloads:
                command = ["-m", module, "--shape", shape, "--task", task, "--steps", str(args.steps)]
                commands[f"{part}-{shape}-{task}"] = command
    if "tests" in args.parts:
        commands["tests"] = ["-m", "pytest", "tests", "-q", "-x", "--maxfail=20", "-p", "no:cacheprovider"]

    rows, failed = [], []
    with (args.output / "results.jsonl").open("w") as results:
        for name, command in commands.items():
            print(f"{name} ...", flush=True)
            lines, reason = _run(name, command, args.output)
            if reason:
                failed.append(f"{name}: {reason}")
            for row in lines:
                rows.append(row)
                results.write(json.dumps(row) + "\n")
            results.flush()
    report = _report(rows, failed, list(commands))
    (args.output / "report.md").write_text(report)
    print(report)
    sys.exit(1 if failed else 0)


def _run(name: str, command: list[str], folder: Path) -> tuple[list[dict], str | None]:
    """The JSON lines a part printed, and why it failed, if it did."""
    import os

    environment = dict(os.environ)
    if name == "tests":
        environment["JAXALIGN_TEST_PLATFORM"] = "gpu"
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        try:
            limit = LIMIT_S[name.split("-")[0]]
            done = subprocess.run(
                [sys.executable, *command], stdout=stream, stderr=subprocess.STDOUT, env=environment, timeout=limit
            )
            reason = None if done.returncode == 0 else f"exit status {done.returncode}, see {log.name}"
        except subprocess.TimeoutExpired:
            reason = f"longer than {limit} s, see {log.name}"
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return lines, reason


def _report(rows: list[dict], failed: list[str], names: list[str]) -> str:
    device = next((row["device"] for row in rows if "device" in row), "no device reported")
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    lines = [
        f"{datetime.date.today()}, {device}, Python {platform.python_version()}, {versions}.",
        "",
        *attention_table([row for row in rows if row.get("bench") == "attention"]),
        *steps_table([row for row in rows if row.get("bench") == "step"]),
        *sampling_table([row for row in rows if row.get("bench") == "sampling"]),
    ]
    if "tests" in names:
        lines += [
            f"Test suite on the GPU: {'failed' if any(f.startswith('tests:') for f in failed) else 'passed'}.",
            "",
        ]
    return "\n".join([*lines, *(f"FAILED {line}" for line in failed)]) + "\n"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
