"""``jaxalign doctor``: what it says of versions, devices, the hub and disks, and when it ends with status 1."""

import errno
import http.server
import importlib.metadata
import json
import os
import stat
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from jaxalign.cli import _doctor

SECRET = "hf_of_nobody_at_all"


@pytest.fixture
def hub(monkeypatch):
    """A loopback server as the hub: the status it answers with, and the requests it got."""
    asked, answer = [], {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.command, self.headers.get("Authorization")))
            self.send_response(answer["status"])
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield answer, asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def report(shell, tmp_path):
    def run(*flags):
        status, output, errors = shell("doctor", "--json", "--output-dir", tmp_path, *flags)
        assert not errors
        content = json.loads(output)
        assert content["ok"] == (status == 0)
        return status, {one["name"]: one for one in content["findings"]}

    return run


def test_it_names_what_is_here_and_asks_the_hub_once(hub, report, monkeypatch, shell, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    status, found = report()
    assert status == 0
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets"):
        assert found[name]["value"] == importlib.metadata.version(name)
    assert "cpu" in found["devices"]["value"]
    assert found["attention, float32"]["value"] == found["attention, bfloat16"]["value"] == "xla"
    assert found["hub"]["value"].endswith("answers (200)")
    assert found["hub token"]["value"] == "present"
    assert hub[1] == [("HEAD", None)]
    status, output, _ = shell("doctor", "--output-dir", tmp_path)
    assert status == 0
    assert "attention, bfloat16" in output
    assert SECRET not in output + json.dumps(found)


@pytest.mark.parametrize(("status", "finding"), [(401, "ok"), (503, "warning")])
def test_a_hub_that_answers_badly(status, finding, hub, report):
    hub[0]["status"] = status
    ended, found = report()
    assert (ended, found["hub"]["status"]) == (0, finding)
    assert str(status) in found["hub"]["value"]


def test_a_hub_that_is_not_there_and_a_password_in_its_address(hub, report, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://name:hidden@127.0.0.1:9")
    found = report("--timeout", "1")[1]
    assert found["hub"]["status"] == "warning"
    assert found["hub"]["value"].startswith("http://127.0.0.1:9: no answer")
    assert "hidden" not in json.dumps(found)


def test_offline_the_hub_is_not_asked(hub, report, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in report()[1]["hub"]["value"]
    assert hub[1] == []


def test_a_version_out_of_range_is_a_warning_and_a_missing_package_an_error(hub, report, monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "optax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "flax" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, found = report()
    assert status == 1
    assert found["flax"]["status"] == "warning"
    assert "0.12.8" in found["flax"]["advice"]
    assert found["optax"]["status"] == "error"


def test_a_folder_that_cannot_be_written_is_an_error(hub, report, tmp_path):
    (tmp_path / "file").touch()
    status, found = report("--output-dir", tmp_path / "file")
    assert (status, found["output folder"]["status"]) == (1, "error")


def test_a_parent_that_may_not_be_entered_is_an_error(hub, report, tmp_path, monkeypatch):
    exists = Path.exists

    def closed(path, **options):
        if path.name == "inside":
            raise PermissionError(errno.EACCES, "Permission denied")
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", closed)
    status, found = report("--output-dir", tmp_path / "inside")
    assert (status, found["output folder"]["status"]) == (1, "error")
    assert found["output folder"]["value"] == f"{tmp_path / 'inside'}: cannot be looked at (Permission denied)"


def test_little_disk_is_a_warning(hub, report, monkeypatch):
    monkeypatch.setattr(_doctor, "LITTLE_DISK", 1 << 62)
    status, found = report()
    assert (status, found["output folder"]["status"]) == (0, "warning")


@pytest.mark.parametrize(
    ("plugins", "advice"), [([], "pip install 'jaxalign[cuda]'"), (["xla_cuda13"], "NVIDIA driver")]
)
def test_a_gpu_that_jax_does_not_see(plugins, advice, hub, report, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("JAX_PLATFORM_NAME", raising=False)
    found = [importlib.metadata.EntryPoint(name, f"jax_plugins.{name}", "jax_plugins") for name in plugins]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = report()[1]["accelerator"]
    assert found["status"] == "warning"
    assert found["value"] == "NVIDIA: 1 x NVIDIA H100 80GB HBM3, which jax does not see"
    assert advice in found["advice"]
    assert ("pip" in found["advice"]) == (not plugins)


def test_a_timeout_must_be_positive(refused):
    assert refused("doctor", "--timeout", "0") == "--timeout: must be above 0, is 0.0"
