"""Folders read and written by two processes together."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from jaxalign import models
from tests.models.folders import GOLDEN

SCRIPT = Path(__file__).parent / "two_processes.py"


def test_two_processes_read_their_parts_and_save_one_folder(tmp_path):
    shutil.copytree(GOLDEN / "llama_untied_biased", tmp_path / "model")
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    with socket.socket() as server:
        server.bind(("localhost", 0))
        port = server.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path, str(port), str(index)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in (0, 1)
    ]  # fmt: skip
    found = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            found.append(json.loads(output.strip().splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()

    for shares in (one["shares"] for one in found):
        # Sharded over all devices: half is this process's. Its two devices, replicas of one another or not: once.
        assert shares["fsdp=4"]["model.embed_tokens.weight:0"] == 0.5
        assert shares["tensor=4"]["model.layers.{layer}.mlp.up_proj.weight:0"] == 0.5
        assert shares["data=2,fsdp=2"]["model.layers.{layer}.mlp.up_proj.weight:0"] == 1
        assert max(share for by_name in shares.values() for share in by_name.values()) == 1
    first, second = (one["refused"] for one in found)
    assert "not saved: a folder stands where a file has to go" in first
    assert "not saved: the first process could not write" in second

    _, original = models.load_pretrained(tmp_path / "model")
    for mesh in ("fsdp=4", "tensor=4", "data=2,fsdp=2"):
        _, saved = models.load_pretrained(tmp_path / "saved" / mesh)
        jax.tree.map(np.testing.assert_array_equal, saved, original)
        assert len(list((tmp_path / "saved" / mesh).glob("model-*"))) > 3
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["config.json"]
