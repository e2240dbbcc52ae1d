"""Hub ids: what is downloaded, and one clear line when it cannot be."""

import shutil
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from jaxalign import models
from jaxalign.models._hub import ELSEWHERE, EVERYTHING
from tests.models.folders import GOLDEN, fails


@pytest.fixture
def hub(monkeypatch):
    """A hub whose download gives a folder; what was asked of it."""
    asked = []

    def put(folder, files=()):
        def download(name, **arguments):
            asked.append({"name": name, **arguments})
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, revision: list(files))
        return asked

    return put


def test_weights_and_tokenizer_are_downloaded_once_and_nothing_that_can_run(hub):
    asked = hub(GOLDEN / "gpt2")
    config, _ = models.load_pretrained("somebody/some-model", revision="v1")
    assert config.family == "gpt2"
    assert (asked[0]["name"], asked[0]["revision"]) == ("somebody/some-model", "v1")
    published = {
        "model-00001-of-00002.safetensors": True, "model.safetensors.index.json": True, "config.json": True,
        "tokenizer.json": True, "tokenizer.model": True, "vocab.json": True, "merges.txt": True,
        "chat_template.jinja": True, "generation_config.json": True, "additional_chat_templates/tools.jinja": True,
        "pytorch_model.bin": False, "modeling_x.py": False, "original/consolidated.00.pth": False,
        "consolidated.safetensors": False, "original/model.safetensors": False, "model.Q4.gguf": False,
        "onnx/config.json": False, "README.md": False,
    }  # fmt: skip
    kept = huggingface_hub.utils.filter_repo_objects(published, allow_patterns=EVERYTHING, ignore_patterns=ELSEWHERE)
    assert set(kept) == {name for name, wanted in published.items() if wanted}
    assert (asked[0]["allow_patterns"], asked[0]["ignore_patterns"]) == (EVERYTHING, ELSEWHERE)


def test_a_config_is_had_without_its_weights(hub):
    asked = hub(GOLDEN / "gpt2")
    models.load_config("somebody/some-model")
    assert not any("safetensors" in pattern for pattern in asked[0]["allow_patterns"])


def test_a_model_with_pickled_weights_only(hub, tmp_path):
    shutil.copy(GOLDEN / "llama_tied" / "config.json", tmp_path)
    hub(tmp_path, ["config.json", "pytorch_model.bin"])
    fails("a/b", "a/b: pytorch_model.bin", "LlamaForCausalLM.from_pretrained('a/b').save_pretrained")
    hub(tmp_path, ["config.json", "weights.h5"])
    fails("a/b", "a/b: no safetensors file among its 2 files")


def test_a_cache_without_the_weights(hub, tmp_path, monkeypatch):
    def unreachable(name, revision):
        raise OSError("no route\nand a trace")

    shutil.copy(GOLDEN / "llama_tied" / "config.json", tmp_path)
    hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    fails("a/b", "a/b: only a part of it is in the hub's cache", str(tmp_path))


def test_an_adapter_on_the_hub(hub, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    hub(tmp_path)
    fails("a/b", "an adapter", "some/base")


def test_offline_is_said_at_once(tmp_path, monkeypatch):
    """The client itself, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    fails("somebody/some-model", "somebody/some-model: not a local folder", "HF_HUB_OFFLINE")
    fails("somebody/some-model", "somebody/some-model (revision v2)", "HF_HUB_OFFLINE", revision="v2")
    assert time.monotonic() - start < 5


def test_a_hub_that_does_not_answer(monkeypatch):
    def offline(*args, **kwargs):
        try:
            raise OSError("no network\nand a long trace")
        except OSError as error:
            raise huggingface_hub.errors.LocalEntryNotFoundError("An error happened, we looked everywhere") from error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    fails("somebody/some-model", "somebody/some-model", "does not give it (no network)")


def test_no_such_folder(tmp_path):
    fails(tmp_path / "nothing", "no such folder")
    fails(str(tmp_path / "nothing"), "no such folder")
    fails("./nothing", "no such folder")
    fails("a/b/c", "no such folder")
    fails(GOLDEN / "make_golden.py", "a file, not a model folder")


def test_a_local_folder_has_no_revision():
    fails(GOLDEN / "gpt2", "no revision 'v1'", revision="v1")
