"""Experiments killed in the middle and run again: ``python -m tests.faults.experiments RUNS``.

    python -m tests.faults.experiments runs/experiments [--only NAME ...] [--share 0.5] [--seed 0]

RUNS are output folders of finished experiments (``make experiments`` leaves them), the runs that nothing happened to.
Of each the stages that were finished first are laid into a new folder, as a killed run would have left them; the
experiment goes on there, is killed (SIGKILL) in the middle of a later stage, and is run again to its end. Then the
result has to be the undisturbed run's, measured times apart, and no stage that was finished may have been touched. It
takes a share of the experiments' own time.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import _results
from tests.faults.harness import ROOT

_TIMED = ("rlhf_without_rl",)
"""What these find is times, which no two runs share: of them the stages' other numbers are compared."""


@dataclass(frozen=True)
class Row:
    """What happened to one experiment."""

    experiment: str
    stages: int
    before: int
    """Finished when it was killed."""
    killed_in: float
    """Seconds into the stage that was killed."""
    seconds: float


def stages_of(folder: Path) -> dict[str, float]:
    """Finished stages and when each was, the first first."""
    seals = {seal.parent.name: seal.stat().st_mtime for seal in folder.glob("stages/*/stage.json")}
    return dict(sorted(seals.items(), key=lambda pair: pair[1]))


def command_of(folder: Path, output: Path) -> list[str]:
    """The command that made ``folder``, into ``output``."""
    result = _results.load(folder)
    command = [sys.executable, "-m", f"experiments.{result.experiment}", "--preset", result.preset]
    if result.experiment == "human_vs_judge":
        command += ["--summaries", str(folder.parent / "tldr_summarization")]
    return [*command, "--output-dir", str(output)]


def untimed(folder: Path) -> Any:
    """The result, times apart."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result.pop("seconds")
    if result["experiment"] not in _TIMED:
        return result
    return {"values": result["values"]}


def disturb(folder: Path, output: Path, *, share: float, random_source: random.Random) -> Row:
    """Kill and go on.

    Raises:
      AssertionError: it was not killed in the middle, ended otherwise than the run in ``folder``, or did a finished
        stage again.
    """
    started = time.monotonic()
    names = list(stages_of(folder))
    kept = names[: int(len(names) * (1 - share))]
    for name in kept:
        shutil.copytree(folder / "stages" / name, output / "stages" / name, copy_function=shutil.copy2)
    command = command_of(folder, output)
    delay = _kill_in_the_middle(command, output, after=min(len(kept) + 1, len(names) - 1), random_source=random_source)
    before = stages_of(output)
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    after = stages_of(output)
    _same("stages finished before the kill", before, {name: after.get(name) for name in before})
    _same("stages", sorted(names), sorted(after))
    _same("result.json", untimed(folder), untimed(output))
    return Row(_results.load(folder).experiment, len(names), len(before), delay, time.monotonic() - started)


def _kill_in_the_middle(command: list[str], output: Path, *, after: int, random_source: random.Random) -> float:
    """Start it, wait for ``after`` finished stages, kill it some seconds later; how many those were."""
    delay = random_source.uniform(0.5, 3.0)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(stages_of(output)) < after:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"{command} ended before it was killed: {process.returncode}"
    assert not (output / "result.json").exists(), f"{command} was killed after its end"
    return delay


def _same(what: str, expected: Any, found: Any) -> None:
    if expected != found:
        raise AssertionError(f"{what}: expected {_short(expected)}, found {_short(found)}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)
    return text if len(text) < 2000 else f"{text[:2000]} ..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--share", type=float, default=0.5, help="of the stages that are computed again")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = random.Random(options.seed)
    folders = [path.parent for path in sorted(options.runs.glob("*/result.json"))]
    print(
        "| experiment | stages | finished when killed | seconds into the next | result | seconds |\n"
        "|---|---:|---:|---:|---|---:|"
    )
    for folder in folders:
        if options.only and folder.name not in options.only:
            continue
        with tempfile.TemporaryDirectory(dir=options.runs.parent) as temporary:
            row = disturb(folder, Path(temporary) / "run", share=options.share, random_source=source)
        print(
            f"| {row.experiment} | {row.stages} | {row.before} | {row.killed_in:.1f} | the same | {row.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
