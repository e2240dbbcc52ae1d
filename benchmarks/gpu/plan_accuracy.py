"""What ``jaxalign plan`` predicts against what steps take of a GPU: ``peak_bytes_in_use`` of JAX's allocator.

    python -m benchmarks.gpu.plan_accuracy --devices H100

Every run of ``benchmarks.plan_accuracy`` that wants one device is planned for the GPU that is named, then its step is
compiled and run here, on the GPU, each in a process of its own (the allocator's peak never falls). The plan is an
estimate of a CPU's compiler for another: this says how good one. Written without a GPU at hand, and not yet run on one.
"""

import argparse
import json
import os
import subprocess
import sys

from benchmarks._plan_cases import CASES, ROLLOUTS, arguments, lowered


def measure(case: str) -> dict[str, int]:
    """Bytes in use while the step runs, in this process."""
    import jax

    compiled = lowered(CASES[case][0]).lowered.compile()
    given = jax.block_until_ready(arguments(compiled))
    jax.block_until_ready(compiled(*given))
    device = jax.devices()[0]
    found = device.memory_stats()
    if found is None:
        raise SystemExit(f"{device.device_kind}: it does not count the memory it uses")
    return {"peak": found["peak_bytes_in_use"]}


def main() -> None:
    from jaxalign.recipes.plan import plan

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="H100", help="the GPU that is here: A100, H100 or H200")
    parser.add_argument("--measure", choices=list(CASES), help="measure one in this process, print JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{'run':<32} {'planned, GiB':>14}{'measured, GiB':>14} {'off by':>8}")
    for case, (config, devices) in CASES.items():
        if devices > 1 or case in ROLLOUTS:
            continue
        found = plan(config, devices=options.devices, suggest=False)
        planned = found.update_bytes - (found.memory["reference"] if found.recipe == "ppo" else 0)
        command = [sys.executable, "-m", "benchmarks.gpu.plan_accuracy", "--measure", case]
        # No pool taken at the start; the peak is of what was asked for, either way.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUDA_VISIBLE_DEVICES": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"{case:<32} {planned / 2**30:>14.3f} {done.stderr.strip().splitlines()[-1][:80]}", flush=True)
            continue
        measured = json.loads(done.stdout.splitlines()[-1])["peak"]
        print(
            f"{case:<32} {planned / 2**30:>14.3f}{measured / 2**30:>14.3f} {planned / measured - 1:>+8.1%}", flush=True
        )


if __name__ == "__main__":
    main()
