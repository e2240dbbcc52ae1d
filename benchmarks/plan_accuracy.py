"""What ``jaxalign plan`` predicts against what a step takes of this machine's memory.

    python -m benchmarks.plan_accuracy [--cases "dpo" "sft, no remat" ...]

Every run is planned for the CPU devices it then has. Its step is then compiled and run in a process of its own, on
arguments whose every page is written. Measured, from ``/proc/self``: the peak of resident memory while the step runs,
less what was resident before its arguments were made, the compiler's own memory given back first. Nothing of the plan
enters the measurement. Resident memory counts pages that were touched: scratch that a kernel keeps for itself is in it,
an allocated page that nothing wrote is not.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks._plan_cases import CASES, ROLLOUTS, arguments, lowered, sampler


def measure(case: str) -> dict[str, int]:
    """Bytes that arguments and step take, in this process."""
    import jax

    config, devices = CASES[case]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_enable_compilation_cache", False)
    if case in ROLLOUTS:
        return measure_rollout(config)
    compiled = lowered(config).lowered.compile()
    _give_back()
    before = _resident("VmRSS")
    given = jax.block_until_ready(arguments(compiled))
    _give_back()
    made = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # the peak starts anew
    jax.block_until_ready(compiled(*given))
    return {"arguments": made - before, "peak": _resident("VmHWM") - before}


def measure_rollout(config: Any) -> dict[str, int]:
    """Bytes that a policy takes, and it with a rollout of it."""
    import jax

    make, run = sampler(config)
    run(make())  # compiles
    _give_back()
    before = _resident("VmRSS")
    params = jax.block_until_ready(make())
    _give_back()
    made = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    run(params)
    return {"arguments": made - before, "peak": _resident("VmHWM") - before}


def predict(case: str) -> dict[str, int]:
    """Bytes that the plan says, of all devices of this one machine."""
    from jaxalign.recipes.plan import plan

    config, devices = CASES[case]
    found = plan(config, devices=f"{devices}xcpu", suggest=False)
    if case in ROLLOUTS:
        params = 4 * found.parameters  # of the policy, in float32
        return {"arguments": params * devices, "peak": (params + sum(found.rollout.values())) * devices}
    beside = 0 if found.recipe != "ppo" else found.memory["reference"]  # which is not the step's
    exact = ("parameters", "reference", "frozen", "optimizer", "batch")
    given = sum(found.memory[name] for name in exact) - beside
    return {"arguments": given * devices, "peak": (found.update_bytes - beside) * devices}


def _resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _give_back() -> None:
    """Freed memory back to the system."""
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--measure", choices=list(CASES), help="measure one in this process, print JSON")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print(f"{'run':<32} {'arguments, GiB':>24} {'peak, GiB':>24} {'':>8}")
    print(f"{'':<32} {'planned':>12}{'measured':>12} {'planned':>12}{'measured':>12} {'off by':>8}")
    worst = 0.0
    for case in options.cases:
        planned, measured = predict(case), _in_a_process(case)
        off = planned["peak"] / measured["peak"] - 1
        worst = max(worst, abs(off))
        numbers = (planned["arguments"], measured["arguments"], planned["peak"], measured["peak"])
        given, made, held, peak = (number / 2**30 for number in numbers)
        print(f"{case:<32} {given:>12.3f}{made:>12.3f} {held:>12.3f}{peak:>12.3f} {off:>+8.1%}", flush=True)
    print(f"largest difference of a peak: {worst:.1%}")


def _in_a_process(case: str) -> dict[str, Any]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.plan_accuracy", "--measure", case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
