"""``jaxalign convert``: what is written, what is said, what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxalign import models
from tests.recipes import toy


def tree_of(folder):
    return models.load_pretrained(folder)[1]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_dtype_in_shards(model, tmp_path, shell):
    output = tmp_path / "out"
    source = tmp_path / "model"
    shutil.copytree(model, source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    flags = ("--model", source, "--output-dir", output, "--dtype", "bfloat16", "--max-shard-size", "4 KB")
    status, said, errors = shell("convert", *flags)
    assert (status, errors) == (0, "")
    shards = sorted(output.glob("*.safetensors"))
    assert len(shards) > 2
    before, after = tree_of(source), tree_of(output)
    count = sum(leaf.size for leaf in jax.tree.leaves(before))
    assert f"llama, {count:,} parameters, bfloat16\n" in said
    assert f"{output}: {len(shards)} files" in said
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a).astype(b.dtype), b), before, after)
    kept = contents(output)
    for name, data in contents(source).items():
        if name.startswith(("tokenizer", "additional_chat_templates", "chat_template", "generation_config")):
            assert kept[name] == data, name
    assert kept["tokenizer.json"]
    assert "additional_chat_templates/tools.jinja" in said


def test_unchanged_without_flags_and_again_over_itself(model, tmp_path, shell):
    for _ in range(2):
        status, said, errors = shell("convert", "--model", model, "--output-dir", tmp_path)
        assert (status, errors) == (0, "")
        assert ": model.safetensors (" in said
    assert contents(tmp_path).keys() - contents(model).keys() == {"README.md"}
    (tmp_path / "README.md").unlink()
    assert contents(tmp_path) == contents(model)


def test_a_reward_model(tmp_path, shell):
    config = toy.SHAPES["llama"].replace(labels=1)
    tree = {name: part for name, part in toy.params("llama").items() if name != "unembed"}
    models.save_pretrained(
        tmp_path / "model", config, {**tree, "score": {"kernel": np.ones((1, config.width), np.float32)}}
    )
    status, said, _ = shell("convert", "--model", tmp_path / "model", "--output-dir", tmp_path / "out")
    assert status == 0
    assert "llama, 1 label, " in said
    assert "tokenizer: none" in said
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForSequenceClassification"]


def test_an_adapter_is_merged(model, tmp_path, shell):
    config, base = models.load_pretrained(model)
    config = config.replace(lora=models.LoRA(rank=2, alpha=4.0))
    lora = jax.tree.map(lambda leaf: leaf + 0.1, models.init_lora(config, jax.random.key(0)))
    models.save_adapter(tmp_path / "adapter", config, lora)
    flags = ("--model", model, "--adapter", tmp_path / "adapter", "--output-dir", tmp_path / "out")
    status, said, errors = shell("convert", *flags, "--dtype", "float16")
    assert (status, errors) == (0, "")
    assert f"{model} with {tmp_path / 'adapter'}: llama" in said
    expected = models.merge_lora(config, base, lora)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a).astype(np.float16), b),
        expected,
        tree_of(tmp_path / "out"),
    )


@pytest.mark.parametrize("size", ["5XB", "GB", "0", "-1GB", "0.1B"])
def test_a_size_that_is_none(size, model, tmp_path, refused):
    line = refused("convert", "--model", model, "--output-dir", tmp_path / "out", f"--max-shard-size={size}")
    assert line == f"--max-shard-size: {size!r} is not a size such as 500MB or 5GB"


@pytest.mark.parametrize(("size", "expected"), [("7", 7), ("5GB", 5 * 10**9), ("1.5 kb", 1500), ("2MiB", 2 << 20)])
def test_sizes(size, expected):
    from jaxalign.cli._convert import _bytes

    assert _bytes(size) == expected


def test_what_is_refused(model, tmp_path, refused):
    (tmp_path / "file").write_text("")
    line = refused("convert", "--model", model, "--output-dir", tmp_path / "file")
    assert line == f"--output-dir: {tmp_path / 'file'} is a file, not a folder"
    line = refused("convert", "--model", model, "--output-dir", tmp_path)
    assert line == f"--output-dir: {tmp_path} is not empty and holds no model: nothing there is overwritten"
    line = refused("convert", "--model", model, "--output-dir", model)
    assert line == f"--output-dir: {model} is the model itself; give another folder"
    line = refused("convert", "--model", tmp_path / "none", "--output-dir", tmp_path / "out")
    assert line == f"{tmp_path / 'none'}: no such folder"
    assert refused("convert", "--model", model) == "missing: --output-dir"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
