"""The README's code, as it stands there: the shell blocks of "Your own JSONL in ten minutes", then the Python blocks.

They run in one folder, top to bottom, with the packaged SmolLM2, as a reader would type them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def _run(command: list[str], folder: Path) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
        "XLA_FLAGS": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_block_runs_as_it_is_written(folder: Path):
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    languages = [language for language, _ in blocks]
    assert languages.count("bash") >= 3
    assert languages.count("python") >= 2
    output = ""
    for language, text in blocks:
        if language == "bash":
            output += _run(["bash", "-euo", "pipefail", "-c", text], folder)
        else:
            output += _run([sys.executable, "-c", text], folder)
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
