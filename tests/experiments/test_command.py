"""The command line that every experiment has."""

import importlib
import os
import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from experiments._command import Command, FirstBatch
from jaxalign.errors import InputError
from jaxalign.evaluation.judges import EndpointError
from jaxalign.training import CheckpointError, TrainingError

EXPERIMENTS = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "experiments").glob("[a-z]*.py")
    if "main = Command(" in path.read_text()
)


@dataclass(frozen=True)
class Scale:
    """How it is computed."""

    accumulation: int = 1
    """Micro-batches."""


@dataclass(frozen=True)
class Preset:
    """What it does."""

    steps: int = 3
    """Of it."""
    sampling_batch: int = 8
    """Samples at a time."""
    scale: Scale = field(default_factory=Scale)
    """And how."""

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError("--steps: must be at least 0")


PRESETS = {"mini": Preset(), "paper": Preset(steps=7777)}


def command_of(run):
    return Command("Text.", "coh_toy", PRESETS, run, lambda _: FirstBatch(note="Nothing is trained."))


def ended(main, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code


def test_the_experiments_of_the_readme_are_tested_here():
    readme = (Path(__file__).parents[2] / "experiments" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)`\]\(\1\.py\)", readme, re.MULTILINE)) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_lists_what_every_experiment_takes_above_its_presets_fields(name, capsys):
    experiment = importlib.import_module(f"experiments.{name}")
    last = list(experiment.PRESETS)[-1]
    assert ended(experiment.main, "--preset", last, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m experiments.{name} ")
    options = said[said.index("show this help message") :]
    flags = re.findall(r"^[^\w-]*(--[a-z][\w.-]*)", options, re.MULTILINE)
    assert flags[:3] == ["--preset", "--output-dir", "--dry-run"]
    assert len(set(flags)) == len(flags) > 3
    text = " ".join(options.replace("│", " ").split())
    for words in (
        f"--preset {{{','.join(experiment.PRESETS)}}} Where the numbers below come from; flags beside it win. "
        f"(default: {last})",
        "--output-dir DIR Where everything is written; the same command again goes on there. "
        f"(default: runs/{name.replace('_', '-')}-{last})",
        "--dry-run Show the resolved preset and the first batch, and write nothing.",
    ):
        assert words in text


def test_help_shows_the_numbers_of_the_preset(capsys):
    for flags, shown in (((), "3"), (("--preset", "mini"), "3"), (("--preset=paper",), "7777")):
        assert ended(command_of(None), *flags, "--help") == 0
        assert f"(default: {shown})" in capsys.readouterr().out


def test_what_the_flags_say():
    flags = command_of(None).parse([])
    assert (flags.preset, flags.output_dir, flags.dry_run) == ("mini", Path("runs/coh-toy-mini"), False)
    assert flags.config == Preset()
    flags = command_of(None).parse(["--scale.accumulation", "4", "--preset", "paper", "--output-dir", "x", "--dry-run"])
    assert (flags.preset, flags.output_dir, flags.dry_run) == ("paper", Path("x"), True)
    assert flags.config == Preset(steps=7777, scale=Scale(accumulation=4))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--preset", "papr"), "coh_toy: --preset: there is no 'papr'; did you mean 'paper'?\n"),
        (("--preset",), "Missing value for argument '--preset'"),
        (("--step", "4"), "--steps INT"),
        (("--steps", "-1"), "--steps: must be at least 0"),
        (("--steps", "some"), "--steps"),
    ],
)
def test_flags_that_are_refused(flags, words, capsys):
    assert ended(command_of(None), *flags) == 2
    assert words in capsys.readouterr().err


def test_a_dry_run_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command_of(None)(["--preset", "paper", "--dry-run"])
    said = capsys.readouterr().out
    assert "preset paper" in said
    assert "steps=7777" in said
    assert "Nothing is trained." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_stopped_one_says_that_the_same_command_goes_on(tmp_path, capsys, sent, status):
    seen = []

    def run(config, folder, preset):
        try:
            os.kill(os.getpid(), sent)
            time.sleep(60)
        finally:
            seen.append((config.steps, folder, preset))

    before = signal.getsignal(signal.SIGTERM)
    assert ended(command_of(run), "--steps", "5", "--output-dir", str(tmp_path)) == status
    assert seen == [(5, tmp_path, "mini")]
    assert capsys.readouterr().err == "coh_toy: stopped; the same command goes on with the stage that was running\n"
    assert signal.getsignal(signal.SIGTERM) == before


def failing(error):
    def run(*_):
        raise error

    return command_of(run)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("two\nlines"), 2, "two lines"),
        (EndpointError("judge: 3 of 8 comparisons have no verdict"), 1, "judge: 3 of 8 comparisons have no verdict"),
        (TrainingError("step 3: loss is not finite"), 1, "step 3: loss is not finite"),
        (CheckpointError("step 3 could not be saved"), 1, "step 3 could not be saved"),
        (FloatingPointError("the log-probs are not finite"), 1, "the log-probs are not finite"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: Permission denied"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 33.50GiB."), 1,
            "out of memory: the device's memory did not suffice (the last allocation asked for 33.50GiB); try, in this "
            "order, a larger --scale.accumulation (same result, smaller micro-batches), a smaller --sampling-batch",
        ),
    ],
)  # fmt: skip
def test_what_ends_a_run_is_one_line(error, status, line, capsys):
    assert ended(failing(error)) == status
    assert capsys.readouterr().err == f"coh_toy: {line}\n"


@pytest.mark.parametrize("error", [KeyError("a bug"), OSError("a bug that names no file")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        failing(error)([])
