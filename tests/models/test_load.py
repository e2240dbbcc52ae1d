"""Folders in: single and sharded files, every dtype, onto meshes; one clear line for every bad folder."""

import json
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxalign import models, sharding
from jaxalign.models._copy import SMALL, copy_into
from jaxalign.models._safetensors import TensorFolder
from tests.models.folders import GOLDEN, INDEX, copy_golden, divide, edit_config, edit_tensors, fails


@pytest.fixture
def folder(tmp_path):
    return lambda name="llama_tied": copy_golden(tmp_path, name)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def golden(name="llama_tied", **arguments):
    return models.load_pretrained(GOLDEN / name, **arguments)[1]


def test_sharded_files(folder):
    path = folder()
    divide(path)
    assert_same(models.load_pretrained(path)[1], golden())


def test_a_whole_file_beside_an_old_index_is_what_is_read(folder):
    """As transformers does."""
    path = folder()
    (path / INDEX).write_text("{}")
    assert_same(models.load_pretrained(path)[1], golden())


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_every_floating_dtype_is_read(stored, asked, folder):
    path = folder()
    edit_tensors(path, lambda tensors: tensors.update({name: x.astype(stored) for name, x in tensors.items()}))
    params = models.load_pretrained(path, dtype=asked)[1]
    wanted = jnp.dtype(asked or (np.float32 if stored is np.float64 else stored))  # no float64 without x64
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(stored).astype(wanted), golden())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {wanted}
    assert_same(params, expected)


def test_layers_of_several_dtypes_are_read_as_one_that_holds_them(folder):
    path = folder()
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(path, lambda tensors: tensors.update({name: tensors[name].astype(np.float16)}))
    params = models.load_pretrained(path)[1]
    assert params["stacks"]["0"]["up"]["kernel"].dtype == np.float32


def test_a_dtype_that_is_no_parameters(folder):
    fails(folder(), "dtype", "int8", dtype="int8")


@pytest.mark.parametrize("name", ["llama_untied_biased", "gpt2", "gptj", "phi3"])
def test_onto_a_mesh(name):
    """Fused tensors and reordered heads too: each device's part is what it is in the whole."""
    mesh = sharding.make_mesh(2, 2, 2)
    config, params = models.load_pretrained(GOLDEN / name, mesh=mesh)
    expected = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == expected
    assert not params["stacks"]["0"]["up"]["kernel"].sharding.is_fully_replicated
    assert_same(params, golden(name))


def test_onto_a_mesh_by_a_table_of_ones_own():
    mesh = sharding.make_mesh(2, 2, 2)
    rules = sharding.parse_rules(("vocab=", "embed=data,tensor", "heads=", "kv_heads=", "mlp=fsdp"))
    config, params = models.load_pretrained(GOLDEN / "gpt2", mesh=mesh, rules=rules)
    expected = sharding.tree_shardings(models.logical_axes(config), params, mesh, rules)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == expected
    assert params["stacks"]["0"]["up"]["kernel"].sharding.spec[1:] == (("data", "tensor"), "fsdp")
    assert_same(params, golden("gpt2"))


def test_only_what_the_devices_need_is_read(tmp_path):
    """The half of the file that no device needs is cut off after it was mapped: touching it would kill the process."""
    rows = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    save_file({"table": rows}, tmp_path / "model.safetensors")
    program = f"""
import os, pathlib, numpy as np
from jaxalign.models._load import _Leaf
from jaxalign.models._safetensors import TensorFolder
from jaxalign.models.families._family import plain
folder = pathlib.Path({str(tmp_path)!r})
tensors = TensorFolder(folder)
leaf = _Leaf(tensors, plain("table", ("table",), (1024, 1024)), 0, ["table"], np.dtype(np.float32))
os.truncate(folder / "model.safetensors", 3 << 20)
part = leaf.read((slice(0, 512), slice(0, 1024)))
assert part.sum(dtype=float) == sum(range(1 << 19)), part
print("read", flush=True)
leaf.read((slice(512, 1024), slice(0, 1024)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "read\n", done.stderr
    assert done.returncode < 0  # SIGBUS: the other half was not there


@pytest.mark.parametrize("shape", [(1100, 1030), (7, 600, 300), (300, 5, 900), (40, 30, 20, 60)])
def test_copies_between_layouts(shape):
    """Whatever order the source's axes have in memory."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        order = rng.permutation(len(shape))
        source = rng.random([shape[axis] for axis in order], np.float32).transpose(np.argsort(order))
        assert source.shape == shape
        assert source.nbytes > SMALL
        target = np.empty(shape, np.float64)
        copy_into(target, source)
        np.testing.assert_array_equal(target, source)


# What is wrong with a folder.


def test_a_folder_that_is_no_model(tmp_path):
    fails(tmp_path, "no config.json")


def test_a_config_that_is_not_json(folder):
    path = folder()
    (path / "config.json").write_text("{")
    fails(path, "config.json", "not JSON")
    (path / "config.json").write_text("[]")
    fails(path, "config.json", "object")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "mamba"}, ("'mamba'", "llama, mistral")),
        ({"model_type": "DELETE"}, ("model_type",)),
        ({"architectures": ["LlamaForTokenClassification"]}, ("LlamaForTokenClassification",)),
        ({"auto_map": {"AutoModel": "x.Y"}}, ("auto_map", "never", "remove the field")),
        ({"hidden_size": "DELETE"}, ("hidden_size", "missing")),
        ({"hidden_size": "24"}, ("hidden_size", "'24'")),
        ({"hidden_act": "mish"}, ("hidden_act", "'mish'")),
        ({"quantization_config": {"bits": 4, "quant_method": "gptq"}}, ("gptq weights are quantised", "dequantize()")),
        ({"clip_qkv": 8.0}, ("'clip_qkv'", "unknown")),
    ],
)
def test_a_config_field_that_is_not_implemented_is_named(folder, changes, parts):
    path = folder()
    edit_config(path, **changes)
    fails(path, str(path / "config.json"), *parts)


def test_no_weights(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    fails(path, str(path), "no model.safetensors")


def test_pickled_weights_come_with_the_command_that_converts_them(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"")
    command = f"transformers.LlamaForCausalLM.from_pretrained('{path}').save_pretrained('NEW_FOLDER')"
    fails(path, "pytorch_model.bin", "can run code", command)
    fails(path / "pytorch_model.bin", "can run code", command)


def test_gguf(folder):
    path = folder()
    (path / "model.safetensors").rename(path / "model.Q4_K.gguf")
    fails(path, "model.Q4_K.gguf", "GGUF", "safetensors")
    fails(path / "model.Q4_K.gguf", "GGUF", "safetensors")


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_no_model(with_config, folder):
    path = folder()
    (path / "model.safetensors").unlink()
    if not with_config:
        (path / "config.json").unlink()
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    fails(path, "an adapter", f"--adapter {path}", "jaxalign convert --model some/base")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda raw: b"not a safetensors file", ("damaged",)),
        (lambda raw: b"", ("damaged", "0 bytes")),
        (lambda raw: raw[:-100], ("cut short", "model.safetensors")),
        (lambda raw: raw[: len(raw) // 3], ("cut short",)),
        (lambda raw: raw + b"0000", ("4 bytes too many",)),
        (lambda raw: struct.pack("<Q", 1 << 40) + raw[8:], ("damaged", str(1 << 40))),
        (lambda raw: raw.replace(b'"shape"', b'"shake"', 1), ("damaged", "'shape'")),
        (lambda raw: raw.replace(b'"F32"', b'"F16"', 1), ("damaged", "does not lie where")),
        (lambda raw: raw.replace(b"layers.1.mlp.up_proj", b"layers.0.mlp.up_proj", 1), ("twice", "layers.0.mlp.up")),
    ],
)
def test_a_damaged_file_is_named(folder, change, parts):
    path = folder()
    file = path / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    fails(path, str(file), *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ("'model.layers.1.mlp.up_proj.weight'", "missing")),
        (lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}), ("model.norm.weight", "(5,)", "(24,)")),
        (lambda t: t.update({"score.weight": np.ones((1, 24), np.float32)}), ("unexpected", "'score.weight'")),
        (lambda t: t.update({"model.norm.weight": np.ones(24, np.int8)}), ("model.norm.weight", "I8", "quantised")),
    ],
)
def test_a_bad_tensor_is_named(folder, change, parts):
    path = folder()
    edit_tensors(path, change)
    fails(path, str(path), *parts)


def edit_index(path, change):
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def test_bad_shards(folder):
    path = folder()
    halves = divide(path)
    (first, moved, *_), second = halves["a.safetensors"], halves["b.safetensors"][0]
    good = (path / INDEX).read_text()

    edit_index(path, lambda names: names.update({"model.extra": "a.safetensors"}))
    fails(path, "a.safetensors", "'model.extra' is missing, though")
    (path / INDEX).write_text(good)
    edit_index(path, lambda names: names.update({moved: "b.safetensors"}))
    fails(path, "b.safetensors", f"{moved!r} is missing, though")
    (path / INDEX).write_text(good)
    edit_index(path, lambda names: names.pop(first))
    fails(path, f"{first!r} is in a file, but the index does not name it")
    for bad in ("[]", "{", '{"weight_map": 3}'):
        (path / INDEX).write_text(bad)
        fails(path, INDEX, "not an index")
    (path / INDEX).write_text('{"weight_map": {"x": "../b.safetensors"}}')
    fails(path, INDEX, "'../b.safetensors'")
    (path / INDEX).write_text(good)
    edit_tensors(path, lambda t: t.update({second: np.ones(3, np.float32)}), "a.safetensors")
    fails(path, "b.safetensors", f"{second!r} is in a.safetensors too")
    edit_tensors(path, lambda t: t.pop(second), "a.safetensors")
    edit_tensors(path, lambda t: t.update({"of.nothing": np.ones(3, np.float32)}), "a.safetensors")
    fails(path, "unexpected", "'of.nothing'")
    (path / "b.safetensors").unlink()
    fails(path, "b.safetensors: missing")


def test_released_pages_are_read_again(folder):
    """Giving pages back changes nothing but memory."""
    tensors = TensorFolder(folder())
    name, shape = "model.embed_tokens.weight", golden()["embed"]["tokens"].shape
    view = tensors.view(name, shape)
    before = view.copy()
    tensors.release(name)
    tensors.release(name, view[3:5, 2:].T)
    np.testing.assert_array_equal(view, before)
    assert not view.flags.writeable


def test_a_second_copy_of_a_tied_matrix_must_be_one(folder):
    path = folder()
    edit_tensors(path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    assert_same(models.load_pretrained(path)[1], golden())
    edit_tensors(path, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    fails(path, "lm_head.weight", "another matrix", "tie_word_embeddings")


def test_shards_without_their_index(folder):
    path = folder()
    divide(path)
    (path / INDEX).unlink()
    fails(path, "no model.safetensors.index.json")


def test_a_pointer_of_git_lfs(folder):
    path = folder()
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    fails(path, "model.safetensors", "git lfs pull")


def test_a_dtype_that_is_unknown(folder):
    fails(folder(), "dtype", "bf16", dtype="bf16")
