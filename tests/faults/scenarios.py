"""What happens to a run, a function each; every one ends as the undisturbed run or raises ``AssertionError``."""

import collections
import contextlib
import dataclasses
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.disks import fill, small_disk
from tests.faults.harness import Death, Launcher, Material, Run, cut, files_of, flip, kill_at_random, kill_in_the_end


@dataclasses.dataclass
class Row:
    """What a scenario did."""

    scenario: str
    disturbances: int = 0
    starts: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)
    """Updates computed again, a disturbance each."""
    moments: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: float = 0.0
    skipped: str = ""

    def add(self, deaths: list[Death]) -> None:
        self.disturbances += len(deaths)
        self.starts += len(deaths)
        self.lost += [death.lost for death in deaths]
        self.moments.update(death.moment for death in deaths)


@dataclasses.dataclass(frozen=True)
class Suite:
    """One recipe's command and its undisturbed run."""

    launcher: Launcher
    folder: Path
    recipe: str
    steps: int
    save_every: int
    whole: Run
    source: random.Random

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, launcher: Launcher, folder: Path, recipe: str, *, steps: int, save_every: int, seed: int = 0
    ) -> Iterator["Suite"]:
        """Make the material and run the undisturbed run."""
        folder.mkdir(parents=True, exist_ok=True)
        arguments = Material.write(folder).arguments(
            recipe, steps=steps, save_every=save_every, eval_every=4 * save_every
        )
        whole = Run(launcher, arguments, folder / "whole", folder / "whole.log")
        whole.until_done()
        assert [row["step"] for row in whole.rows() if "loss" in row] == list(range(1, steps + 1))
        yield cls(launcher, folder, recipe, steps, save_every, whole, random.Random(seed))

    def run(self, name: str, folder: Path | None = None) -> Run:
        return Run(self.launcher, self.whole.arguments, (folder or self.folder) / name, self.folder / f"{name}.log")

    @contextlib.contextmanager
    def timed(self, scenario: str) -> Iterator[Row]:
        row, begin = Row(f"{scenario} ({self.recipe})"), time.monotonic()
        yield row
        row.seconds = time.monotonic() - begin

    def finish(self, run: Run, row: Row) -> None:
        run.until_done()
        row.starts += 1
        run.check_equals(self.whole)

    def kills(self, count: int) -> Row:
        """SIGKILL at random moments, once more while the final model is written."""
        with self.timed("SIGKILL at random moments") as row:
            run = self.run("killed")
            row.add(kill_at_random(run, self.source, count - 1, self.steps))
            kill_in_the_end(run)
            row.add([Death("while the final model was being written", 0)])
            self.finish(run, row)
        return row

    def damages(self, count: int) -> Row:
        """SIGKILL, then a bit flipped in, or an end cut off, some file of the newest checkpoint."""
        with self.timed("a damaged newest checkpoint") as row:
            run = self.run("damaged")
            for number in range(count):
                before = max(run.saved(), default=0)
                goal = before + max((self.steps - before) // (count - number + 1), 2 * self.save_every)
                run.start()
                run.wait_for(
                    lambda goal=goal: run.has_begun() and run.last_row() >= goal and len(run.saved()) >= 2,
                    f"step {goal}",
                )
                run.kill()
                newest = max(run.saved())
                path = self.source.choice([path for path in files_of(run, newest) if path.stat().st_size])
                (flip, cut)[number % 2](path, self.source)
                row.moments[f"{('a bit flipped', 'an end cut off')[number % 2]}"] += 1
                row.disturbances += 1
                row.starts += 1
                row.lost.append(run.last_row() - run.saved()[-2])  # where no bit of any use was hit, fewer
            self.finish(run, row)
            row.moments["said aloud and set aside"] = run.said().count("is damaged, trying the one before")
        return row

    def signals(self, count: int) -> Row:
        """SIGTERM and SIGINT: the step is finished and saved, nothing is computed again."""
        with self.timed("SIGTERM, SIGINT") as row:
            run = self.run("signalled")
            for number in range(count):
                before = max(run.saved(), default=0)
                run.start()
                goal = before + self.source.randint(1, max((self.steps - before) // (count - number + 1), 1))
                run.wait_for(lambda goal=goal: run.has_begun() and run.last_row() >= goal, f"step {goal}")
                time.sleep(self.source.uniform(0, 0.02))
                status = run.kill((signal.SIGTERM, signal.SIGINT)[number % 2])
                assert status == 0, run.said()[-2000:]
                assert max(run.saved()) == run.last_row() < self.steps
                assert f"stopped at step {run.last_row()}; the same command continues" in run.said()
                row.add([Death("in the loop", 0)])
            self.finish(run, row)
        return row

    def full_disk(self, count: int) -> Row:
        """The disk fills up; the run ends with one line, and goes on when there is room again."""
        with self.timed("disk full") as row, small_disk(self.folder / "disk", 64) as mounted:
            if not mounted:
                row.skipped = "no file system can be mounted here"
                return row
            run = self.run("full", self.folder / "disk")
            for number in range(count):
                before = max(run.saved(), default=0)
                goal = before + max((self.steps - before) // (count - number + 1), self.save_every + 1)
                run.start()
                run.wait_for(lambda goal=goal: run.has_begun() and run.last_row() >= goal, f"step {goal}")
                filler = fill(self.folder / "disk")
                self.fails(run, run.log, "No space left on device", row)
                filler.unlink()
            self.finish(run, row)
        return row

    def file_size(self) -> Row:
        """Files may not grow beyond a limit, as under a quota."""
        with self.timed("file size limit") as row:
            run = self.run("limited")
            run.start(file_size=16384)
            self.fails(run, run.log, "File too large", row)
            self.finish(run, row)
        return row

    def no_permission(self) -> Row:
        """The folder of the checkpoints may no longer be written."""
        with self.timed("permission denied") as row:
            run = self.run("denied")
            run.start(permissions=True)
            run.wait_for(lambda: len(run.saved()) >= 2, "the second checkpoint")
            run.checkpoints.chmod(0o555)
            self.fails(run, run.log, "Permission denied", row)
            run.start(permissions=True)  # before the cause is gone
            self.fails(run, run.log, "Permission denied", row)
            run.checkpoints.chmod(0o755)
            self.finish(run, row)
        return row

    def gone(self) -> Row:
        """The run's folder is moved away under the run, and comes back."""
        with self.timed("folder gone for a while") as row:
            run = self.run("gone")
            run.start()
            away = self.folder / "away"
            run.wait_for(lambda: len(run.saved()) >= 2 and _moved(run, away), "the second checkpoint")
            status = run.finish()
            said = run.said()
            # One save may just have begun: between its look at the folder and its first file nothing shows it.
            assert len(run.saved()) <= 1, "a run went on where its folder had been"
            shutil.rmtree(run.folder, ignore_errors=True)
            away.rename(run.folder)
            self.one_line(run, status, said, "the folder is gone", row)
            self.finish(run, row)
        return row

    def fails(self, run: Run, log: Path, cause: str, row: Row) -> None:
        """The run ends by itself, says why in one line, and its newest whole checkpoint is there."""
        status = run.finish()
        self.one_line(run, status, log.read_text(), cause, row)

    def one_line(self, run: Run, status: int, said: str, cause: str, row: Row) -> None:
        assert status in (1, 2), f"status {status}: {said[-3000:]}"
        last = said.rstrip("\n").splitlines()[-1]
        assert last.startswith("jaxalign: "), said[-3000:]
        assert cause in last, last
        assert str(run.folder) in last, last
        row.add([Death(cause, max(run.last_row() - max(run.saved(), default=0), 0))])


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| what happened | times | process starts | updates computed again: mean, most | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.skipped:
            lines.append(f"| {row.scenario} | skipped: {row.skipped} | | | |")
            continue
        mean = sum(row.lost) / max(len(row.lost), 1)
        again = f"{mean:.1f}, {max(row.lost, default=0)}"
        lines.append(f"| {row.scenario} | {row.disturbances} | {row.starts} | {again} | {row.seconds:.0f} |")
    moments: collections.Counter[str] = collections.Counter()
    for row in rows:
        if row.scenario.startswith("SIGKILL"):
            moments.update(row.moments)
    lines += ["", "The SIGKILLs came:", ""]
    lines += [f"- {count} {moment}" for moment, count in moments.most_common()]
    return "\n".join(lines)


def _moved(run: Run, away: Path) -> bool:
    """Move the folder away while nothing is written: a save under way would make it anew and go on there."""
    os.kill(run.process, signal.SIGSTOP)
    try:
        if run.is_saving():
            return False
        run.folder.rename(away)
        return True
    finally:
        os.kill(run.process, signal.SIGCONT)
