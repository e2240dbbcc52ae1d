"""Copies of golden folders, and ways to change them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
INDEX = "model.safetensors.index.json"


def copy_golden(tmp_path, name="llama_tied"):
    """A copy that a test may damage."""
    shutil.copytree(GOLDEN / name, tmp_path / name)
    return tmp_path / name


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "DELETE"}))


def edit_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def divide(folder):
    """One weights file as two, a.safetensors and b.safetensors, and their index."""
    tensors = load_file(folder / "model.safetensors")
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return halves


def fails(folder, *parts, **arguments):
    """Loading is refused in one line that holds all parts."""
    with pytest.raises(InputError) as error:
        models.load_pretrained(folder, **arguments)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message
