"""Imports point downwards only (the layers of the architecture), and importing the library stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxalign"

# Bottom to top. A package may import itself and what stands before it.
LAYERS = ["errors", "losses", "sharding", "models", "data", "training", "sampling", "evaluation", "recipes", "cli"]
# Beside the layers: public checks of a loss, which see losses only.
BESIDE = {"testing": {"errors", "losses", "testing"}}
LOSSES_MAY_IMPORT = {
    "jax",
    "chex",
    "typing",
    "collections",
    "functools",
    "math",
    "dataclasses",
    "jaxalign.losses",
    "__future__",
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer; write the full name"
            names.add(node.module or "")
            if node.module == "jaxalign":
                names |= {f"jaxalign.{alias.name}" for alias in node.names}
    return names


def _layer(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path):
    layer = _layer(path)
    if layer == "__main__":
        layer = "cli"
    allowed = BESIDE.get(layer) or set(LAYERS[: LAYERS.index(layer) + 1])
    ours = {name.split(".")[1] for name in _imports(path) if name.startswith("jaxalign.")}
    assert ours <= allowed, f"{path.name} of layer {layer} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("path", [p for p in FILES if _layer(p) == "losses"], ids=lambda path: path.name)
def test_losses_import_only_jax(path: Path):
    for name in _imports(path):
        assert any(name == ok or name.startswith(ok + ".") for ok in LOSSES_MAY_IMPORT), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_has_one_idea(path: Path):
    lines = len(path.read_text().splitlines())
    assert lines <= 420, f"{path} has {lines} lines: past about 400 it holds two ideas"


def test_every_package_says_what_lives_there():
    for init in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


@pytest.mark.parametrize("statement", ["import jaxalign.cli", "import jaxalign.losses, jaxalign.recipes"])
def test_importing_stays_light(statement: str):
    heavy = "{'torch', 'datasets', 'transformers', 'grain', 'orbax', 'matplotlib', 'sklearn'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
