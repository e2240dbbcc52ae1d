"""Reading SmolLM2-135M from a safetensors folder, beside transformers' ``from_pretrained``, in turn.

    python -m benchmarks.load --rounds 7
    python -m benchmarks.load --rounds 7 --folder FOLDER

Every reading is a process of its own. ``imports`` is the time until the library (and the model's code) is imported,
``load`` the reading, ``touch`` one pass over every parameter afterwards (the largest value): transformers maps
the file and leaves its reading to the first use, so load + touch is what a program waits for. Peak memory is the
process's (``ru_maxrss``), and what it grew by since the imports. The file is in the system's cache on both sides. CPU
seconds stand beside the wall clock: on a busy machine they are the steadier figure.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

FIGURES = {
    "imports_s": "imports, s",
    "load_s": "load, s",
    "ready_s": "load + touch, s",
    "cpu_s": "load + touch, CPU s",
    "whole_s": "whole process, s",
    "peak_mb": "peak memory, MB",
    "grown_mb": "of which since the imports, MB",
}


def measure_ours(folder: str, dtype: str) -> dict[str, Any]:
    """One reading by ``models.load_pretrained``."""
    start = time.perf_counter()
    import jax
    import numpy as np

    from jaxalign import models

    jax.devices()
    imported, before = time.perf_counter(), (peak_mb(), time.process_time())
    _, params = models.load_pretrained(folder, dtype=dtype)
    jax.block_until_ready(params)
    loaded = time.perf_counter()
    largest = max(float(np.max(np.asarray(leaf))) for leaf in jax.tree.leaves(params))
    return row(start, imported, loaded, before, largest, sum(leaf.size for leaf in jax.tree.leaves(params)))


def measure_theirs(folder: str, dtype: str) -> dict[str, Any]:
    """One reading by ``transformers``."""
    start = time.perf_counter()
    import torch
    import transformers
    import transformers.models.llama.modeling_llama

    imported, before = time.perf_counter(), (peak_mb(), time.process_time())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    loaded = time.perf_counter()
    with torch.no_grad():
        largest = max(parameter.max().item() for parameter in model.parameters())
    return row(start, imported, loaded, before, largest, sum(parameter.numel() for parameter in model.parameters()))


def row(
    start: float, imported: float, loaded: float, before: tuple[float, float], largest: float, count: int
) -> dict[str, Any]:
    """The figures of one process, at its end."""
    now = time.perf_counter()
    return {
        "imports_s": imported - start, "load_s": loaded - imported, "ready_s": now - imported, "whole_s": now - start,
        "cpu_s": time.process_time() - before[1], "peak_mb": peak_mb(), "grown_mb": peak_mb() - before[0],
        "largest": largest, "parameters": count,
    }  # fmt: skip


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)


def compare(folder: str, rounds: int, dtype: str) -> str:
    """Both sides in turn; a Markdown table of minimum and median, and the ratio of the medians."""
    found: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    for number in range(rounds + 1):
        for side, rows in found.items():
            command = [sys.executable, "-m", "benchmarks.load", "--side", side, "--folder", folder, "--dtype", dtype]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            if number:  # the first round fills the system's cache
                rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
    for figure in ("largest", "parameters"):
        values = {measured[figure] for rows in found.values() for measured in rows}
        assert len(values) == 1, f"{figure} differs: {sorted(values)}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "transformers", "torch", "safetensors"))
    lines = [
        f"{datetime.date.today()}, {os.cpu_count()}-core CPU, Python {platform.python_version()}, {versions}; "
        f"{found['ours'][0]['parameters']:,} parameters to {dtype}, {rounds} rounds in turn.",
        "",
        "| min / median | transformers | jaxalign | jaxalign / transformers (medians) |",
        "|---|---:|---:|---:|",
    ]
    for figure, title in FIGURES.items():
        theirs, ours = ([measured[figure] for measured in found[side]] for side in ("theirs", "ours"))
        ratio = statistics.median(ours) / statistics.median(theirs)
        lines.append(f"| {title} | {figures(theirs)} | {figures(ours)} | {ratio:.2f} |")
    return "\n".join(lines)


def figures(values: list[float]) -> str:
    digits = 0 if min(values) >= 100 else 2
    return f"{min(values):,.{digits}f} / {statistics.median(values):,.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="a Llama folder; without it SmolLM2-135M is written to a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--side", choices=["ours", "theirs"], help="measure one reading in this process")
    arguments = parser.parse_args()
    if arguments.side is not None:
        measure = measure_ours if arguments.side == "ours" else measure_theirs
        print(json.dumps(measure(arguments.folder, arguments.dtype)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder
        if folder is None:
            folder = str(Path(temporary) / "smollm2")
            subprocess.run([sys.executable, "-m", "experiments.assets.smollm2", folder], check=True)
        print(compare(folder, arguments.rounds, arguments.dtype))


if __name__ == "__main__":
    main()
