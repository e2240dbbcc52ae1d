"""Runs that are disturbed, and the undisturbed one that each of them must equal bit for bit."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.recipes import toy

ROOT = Path(__file__).parents[2]
TIMING = {"seconds", "tokens_per_second"}
POLL = 0.002


class Launcher:
    """The processes of a suite, one after the other, out of one server."""

    def __init__(self) -> None:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._process: int | None = None

    def start(self, arguments: list[Any], log: Path, **limits: Any) -> int:
        """Begin a command; returns its process id."""
        self.abandon()
        request = {"arguments": list(map(str, arguments)), "log": str(log), **limits}
        self._stream("stdin").write(json.dumps(request) + "\n")
        self._stream("stdin").flush()
        self._process = int(self._stream("stdout").readline())
        return self._process

    def wait(self) -> int:
        """The exit status of the command that was begun."""
        status = int(self._stream("stdout").readline())
        self._process = None
        return status

    def _stream(self, name: str) -> Any:
        return getattr(self._server, name)

    def __enter__(self) -> Self:
        return self

    def abandon(self) -> None:
        """Kill a command that a failed scenario left behind."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            self.wait()

    def __exit__(self, *_: object) -> None:
        self.abandon()
        self._stream("stdin").close()
        self._server.wait()


@dataclasses.dataclass
class Run:
    """One command into one folder, started as often as it takes."""

    launcher: Launcher
    arguments: list[Any]
    folder: Path
    log: Path
    """What its processes say: standard error of all of them."""
    process: int = 0
    said_before: int = 0
    """Bytes of the log that earlier processes wrote."""

    def start(self, **limits: Any) -> None:
        flags = ["--output-dir", self.folder]
        self.said_before = self.log.stat().st_size if self.log.exists() else 0
        self.process = self.launcher.start([*self.arguments, *flags], self.log, **limits)

    def said(self) -> str:
        """What all its processes wrote to standard error."""
        return self.log.read_text()

    def finish(self) -> int:
        return self.launcher.wait()

    def until_done(self) -> None:
        self.start()
        status = self.finish()
        assert status == 0, self.said()[-3000:]

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.process, number)
        return self.finish()

    def wait_for(self, happens: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < end, f"{what} did not happen; {self.said()[-2000:]}"
            time.sleep(POLL)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def saved(self) -> list[int]:
        """Steps of the checkpoints that are complete."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(name) for name in os.listdir(self.checkpoints) if name.isdigit())

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def has_begun(self) -> bool:
        """Whether this process has restored and trains: it has said what its first step came to."""
        return self.log.exists() and b"  loss " in self.log.read_bytes()[self.said_before :]

    def is_saving(self) -> bool:
        """Whether this process is writing a checkpoint: what an earlier one left half written is gone by then."""
        return self.has_begun() and any("tmp" in name for name in os.listdir(self.checkpoints))

    def last_row(self) -> int:
        """Step of the last row of metrics.jsonl, 0 if there is none."""
        if not self.metrics.exists():
            return 0
        lines = self.metrics.read_bytes().split(b"\n")[:-1]  # what a killed process cut short has no line end
        return json.loads(lines[-1])["step"] if lines else 0

    def rows(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]

    def check_equals(self, whole: "Run") -> None:
        """Every byte of the final model is the undisturbed run's, and no row is lost, doubled or different."""
        files = sorted(path.name for path in (whole.folder / "final").iterdir())
        assert files == sorted(path.name for path in (self.folder / "final").iterdir())
        for name in files:
            found, expected = ((run.folder / "final" / name).read_bytes() for run in (self, whole))
            assert found == expected, f"{self.folder / 'final' / name} differs from the undisturbed run's"
        assert self.rows() == whole.rows()


@dataclasses.dataclass(frozen=True)
class Material:
    """What runs are made of: a model folder and files of records."""

    folder: Path

    @classmethod
    def write(cls, folder: Path) -> Self:
        toy.write_model(folder / "model")
        toy.write_jsonl(folder / "demonstrations.jsonl", toy.demonstrations() * 3)
        toy.write_jsonl(folder / "pairs.jsonl", toy.pair_records() * 3)
        return cls(folder)

    def arguments(self, recipe: str, *, steps: int, save_every: int, eval_every: int) -> list[Any]:
        """The command but for its output folder. Dropout-free, shuffled anew every epoch, a rate that falls."""
        data = self.folder / ("pairs.jsonl" if recipe == "dpo" else "demonstrations.jsonl")
        own = ["--schedule", "cosine", "--packing", "--row-length", 24]
        if recipe == "dpo":
            own = ["--reference-log-probs", "cached", "--frozen-layers", 1, "--accumulation", 2]
        return [
            recipe, "--model", self.folder / "model", "--dataset", data, "--eval-dataset", data, "--max-steps", steps,
            "--eval-every", eval_every, "--save-every", save_every, "--batch-size", 4, "--learning-rate", 1e-3,
            "--seed", 5, *own,
        ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Death:
    """One SIGKILL: what the process was doing, and how many updates had to be computed again."""

    moment: str
    lost: int


def kill_at_random(run: Run, source: random.Random, kills: int, steps: int) -> list[Death]:
    """Start the run ``kills`` times and kill each process at a random moment; the run never gets to its end.

    One in eight comes during the start (reading, restoring, compiling); of the others half as soon as a checkpoint is
    being written and up to 50 ms later, half at some step while none is.
    """
    deaths = []
    for number in range(kills):
        before = max(run.saved(), default=0)
        run.start()
        # So near that the kills that are left still find something to kill: half of what there is for each, on average.
        goal = before + source.randint(1, max((steps - before) // (kills - number + 1), 1))
        if number % 8 == 4:
            time.sleep(source.uniform(0, 1))
        else:
            run.wait_for(lambda goal=goal: run.has_begun() and run.last_row() >= goal, f"step {goal}")
            if number % 2:
                run.wait_for(run.is_saving, "a save")
                time.sleep(source.uniform(0, 0.05))
            else:
                run.wait_for(lambda: not run.is_saving(), "the end of a save")
        begun, saving = run.has_begun(), run.is_saving()
        status = run.kill()
        assert status == -signal.SIGKILL, f"it ended with {status} before it was killed: {run.said()[-2000:]}"
        if not begun:
            moment = "while starting: reading, restoring, compiling"
        elif saving:
            moment = "while a checkpoint was being written"
        else:
            moment = "in a step, an evaluation or between"
        deaths.append(Death(moment, max(run.last_row() - max(run.saved(), default=0), 0)))
    return deaths


def kill_in_the_end(run: Run) -> None:
    """Kill the run once all its steps are done and its model is being written."""
    run.start()
    run.wait_for(lambda: run.has_begun() and (run.folder / "final").exists(), "the final model")
    assert run.kill() in (-signal.SIGKILL, 0)


def files_of(run: Run, step: int) -> list[Path]:
    return sorted(path for path in (run.checkpoints / str(step)).rglob("*") if path.is_file())


def flip(path: Path, source: random.Random) -> None:
    """One random bit of a file."""
    content = bytearray(path.read_bytes())
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    path.write_bytes(content)


def cut(path: Path, source: random.Random) -> None:
    """A file that ends early."""
    os.truncate(path, source.randrange(path.stat().st_size))
