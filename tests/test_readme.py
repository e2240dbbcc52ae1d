"""The README's code, as it stands there: the shell blocks of "Your own JSONL in ten minutes", then the Python blocks.

They run in one folder, top to bottom, with the packaged SmolLM2, as a reader would type them.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.markdown import ROOT, blocks, shell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_every_block_runs_as_it_is_written(folder: Path):
    found = blocks(ROOT / "README.md")
    languages = [block.language for block in found]
    assert languages.count("bash") >= 3
    assert languages.count("python") >= 2
    assert set(languages) == {"bash", "python"}
    output = ""
    for block in found:
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        output += shell([*command, block.text], folder, XLA_FLAGS="")  # compiled as users' are
    # What the text promises is there.
    assert "Review: The Quiet Year" in output
    run = folder / "runs" / "dpo"
    for name in ("metrics.jsonl", "config.json", "checkpoints", "final/model.safetensors", "final/tokenizer.json"):
        assert (run / name).exists(), name
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    command = re.compile(r"(?:^ {4}|`)make ([a-z-]+)", re.MULTILINE)  # not the verb in a sentence
    named = {
        target for name in ("README.md", "CONTRIBUTING.md") for target in command.findall((ROOT / name).read_text())
    }
    assert {"demo", "test", "lint", "parity"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_runs_what_the_readme_names():
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make test", "make parity"]
