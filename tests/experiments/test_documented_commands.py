"""Every command of an experiment that a page or a docstring shows is one that the experiment takes."""

import importlib

import pytest

from tests.experiments.test_command import EXPERIMENTS
from tests.markdown import PAGES, ROOT, experiment_commands

OTHERS = ("experiments.report", "experiments.assets.smollm2")
FILES = [
    ROOT / "README.md", ROOT / "experiments" / "README.md", *PAGES, *sorted((ROOT / "experiments").rglob("*.py")),
    *sorted((ROOT / "notebooks").glob("*.py")),
]  # fmt: skip
COMMANDS = [
    pytest.param(module, arguments, id=place)
    for file in FILES
    for place, module, arguments in experiment_commands(file)
]


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_a_command_parses(module: str, arguments: list[str]):
    experiment = importlib.import_module(module)
    if module in OTHERS:
        # Named in a sentence, it has no arguments.
        assert not arguments or experiment.parse(arguments)
    else:
        assert not experiment.main.parse(arguments).dry_run or "--dry-run" in arguments


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_docstring_has_a_command_of_every_preset(name: str):
    file = ROOT / "experiments" / f"{name}.py"
    shown = {
        arguments[arguments.index("--preset") + 1]
        for _, module, arguments in experiment_commands(file)
        if module == f"experiments.{name}" and "--preset" in arguments
    }
    assert shown == set(importlib.import_module(f"experiments.{name}").PRESETS)


@pytest.mark.parametrize(
    "text",
    [
        "    python -m experiments.hh_dialogue --preset minni --output-dir runs/hh      (make hh)",
        "As `python -m experiments.hh_dialogue --no-such-flag 3` shows.",
        "python -m experiments.hh_dialogue --preset mini \\\n    --dpo.stepz 3",
        "python -m experiments.report RUNS... [--no-such-flag experiments/README.md]",
    ],
)
def test_a_stale_command_is_found(text: str, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.markdown.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    ((place, module, arguments),) = experiment_commands(tmp_path / "page.md")
    assert place == "page.md:1"
    with pytest.raises((SystemExit, ValueError)):
        test_a_command_parses(module, arguments)
