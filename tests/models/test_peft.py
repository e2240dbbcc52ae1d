"""Adapters in PEFT's format without torch: names and blocks as PEFT has them, round trips, one clear line for what is
not read. That PEFT computes with them what we do is tested in tests/parity."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import InputError
from tests.models.test_lora import random_adapter
from tests.models.tiny import GPT2, LLAMA

LORA = models.LoRA(rank=3, alpha=6.0, targets=("query|key|value|down",), dropout=0.1)


def saved(folder, config, **more):
    tree = random_adapter(config)
    models.save_adapter(folder, config, tree, **more)
    return tree


def test_a_plain_module_is_transposed(tmp_path):
    config = LLAMA.replace(lora=LORA)
    tree = saved(tmp_path, config, base_name="some/base")["stacks"]["0"]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {name: fields[name] for name in (
        "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias",
        "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform", "target_modules",
    )} == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base", "r": 3, "lora_alpha": 6,
        "lora_dropout": 0.1, "use_rslora": False, "bias": "none", "fan_in_fan_out": False, "rank_pattern": {},
        "alpha_pattern": {}, "layers_to_transform": None,
        "target_modules": ["mlp.down_proj", "self_attn.k_proj", "self_attn.q_proj", "self_attn.v_proj"],
    }  # fmt: skip
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 4 * LLAMA.layers
    name = "base_model.model.model.layers.1.{}.lora_{}.weight"
    query, down = tree["query"], tree["down"]
    np.testing.assert_array_equal(tensors[name.format("self_attn.q_proj", "A")], query["lora_a"][1].T)
    np.testing.assert_array_equal(tensors[name.format("self_attn.q_proj", "B")], query["lora_b"][1].reshape(3, 24).T)
    np.testing.assert_array_equal(tensors[name.format("mlp.down_proj", "A")], down["lora_a"][1].T)
    np.testing.assert_array_equal(tensors[name.format("mlp.down_proj", "B")], down["lora_b"][1].T)


def test_a_fused_module_is_written_in_blocks_with_the_same_update(tmp_path):
    config = GPT2.replace(lora=LORA)
    tree = saved(tmp_path, config)["stacks"]["0"]
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["fan_in_fan_out"]
    assert fields["rank_pattern"] == {"attn.c_attn": 9}
    assert fields["alpha_pattern"] == {"attn.c_attn": 18}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.transformer.h.2.attn.c_attn.lora_{side}.weight"] for side in "AB")
    update = (18 / 9) * (b @ a).T
    expected = np.concatenate(
        [
            LORA.scale * tree[part]["lora_a"][2] @ tree[part]["lora_b"][2].reshape(3, -1)
            for part in ("query", "key", "value")
        ],
        axis=1,
    )
    np.testing.assert_allclose(update, expected, rtol=1e-6, atol=1e-6)


def test_a_fused_module_of_one_a_keeps_it(tmp_path):
    config = GPT2.replace(lora=LORA)
    tree = random_adapter(config)
    for part in ("key", "value"):
        tree["stacks"]["0"][part]["lora_a"] = tree["stacks"]["0"]["query"]["lora_a"]
    models.save_adapter(tmp_path, config, tree)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (3, 24)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] == {}
    jax.tree.map(np.testing.assert_array_equal, models.load_adapter(tmp_path, GPT2)[1], tree)


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "changes", [{}, {"targets": ("value|output", "up")}, {"rank_stabilised": True, "first_layer": 1}]
)
def test_what_is_saved_is_loaded_bit_for_bit(model, changes, tmp_path):
    config = model.replace(stacks=(1, 2), lora=dataclasses.replace(LORA, **changes))
    tree = saved(tmp_path, config)
    found_config, found = models.load_adapter(tmp_path, config.replace(lora=None))
    assert found_config.lora.parts(tree["stacks"]["1"]) == config.lora.parts(tree["stacks"]["1"])
    assert dataclasses.replace(found_config.lora, targets=config.lora.targets) == config.lora
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    narrow = models.load_adapter(tmp_path, config.replace(lora=None), dtype="bfloat16")[1]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(narrow)} == {"bfloat16"}


def test_a_layer_the_file_leaves_out_has_zeros(tmp_path):
    config = LLAMA.replace(stacks=(2, 1), lora=dataclasses.replace(LORA, first_layer=2))
    tree = saved(tmp_path, config)
    found_config, found = models.load_adapter(tmp_path, LLAMA)
    assert found_config.lora.first_layer == 0
    for part, leaves in found["stacks"]["0"].items():
        for name, leaf in leaves.items():
            assert not np.any(leaf[:2])
            np.testing.assert_array_equal(leaf[2:], tree["stacks"]["1"][part][name])


def test_a_bare_models_names_are_read(tmp_path):
    config = LLAMA.replace(lora=LORA)
    tree = saved(tmp_path, config)
    path = tmp_path / "adapter_model.safetensors"
    save_file(
        {name.replace("base_model.model.model.", "base_model.model."): x for name, x in load_file(path).items()}, path
    )
    jax.tree.map(np.testing.assert_array_equal, models.load_adapter(tmp_path, LLAMA)[1], tree)


# --- what is refused --------------------------------------------------------------------------------------------------

Q1 = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(Q1.format("B")), rf"adapter_model.safetensors: '{Q1.format('A')}' has no lora_B beside it"),
        (lambda t: (t.pop(Q1.format("A")), t.pop(Q1.format("B"))), rf"tensor '{Q1.format('A')}' is missing, though"),
        (put(Q1.format("A"), np.zeros((3, 23), np.float32)), rf"'{Q1.format('A')}' has shape \(3, 23\), .* \(3, 24\)"),
        (put(Q1.format("B"), np.zeros((24, 2), np.float32)), rf"'{Q1.format('B')}' has shape \(24, 2\), .* \(24, 3\)"),
        (put(Q1.format("A"), np.zeros((3, 24), np.int8)), rf"'{Q1.format('A')}' is int8 .*, not a matrix"),
        (put("base_model.model.lm_head.lora_A.weight", np.zeros((3, 24), np.float32)), "lm_head.* adapts nothing that"),
        (put("base_model.model.model.layers.3.mlp.up_proj.lora_A.weight", np.zeros((3, 24), np.float32)),
         "layers.3.* adapts nothing that can be adapted here: the projections of a llama model's 3 layers"),
        (put(Q1.format("A").replace("lora_A.weight", "lora_magnitude_vector"), np.zeros(3, np.float32)), "magnitude"),
        (lambda tensors: tensors.clear(), "holds no tensor"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    saved(tmp_path, LLAMA.replace(lora=LORA))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        models.load_adapter(tmp_path, LLAMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "adapter_config.json: peft_type = 'LOHA' is not implemented; LORA is"),
        ({"r": "3"}, "adapter_config.json: field 'r' must be a whole number, is '3'"),
        ({"r": 0}, "adapter_config.json: LoRA.rank: must be at least 1"),
        ({"lora_alpha": None}, "field 'lora_alpha' must be a number"),
        ({"use_dora": True}, "adapter_config.json: use_dora = true is not implemented"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication = \[\[0, 2\]\] is not implemented"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, 'bias = "lora_only" is not implemented'),
        ({"init_lora_weights": "olora"}, 'init_lora_weights = "olora" is not implemented'),
        ({"a_field_of_the_future": 1}, "a_field_of_the_future = 1 is not implemented"),
        ({"rank_pattern": {"q_proj": 2}}, r"q_proj.lora_A.weight' has shape \(3, 24\), .* say \(2, 24\)"),
        (
            {"target_modules": ["o_proj", "q_proj", "k_proj", "v_proj", "down_proj"]},
            "layers.0.self_attn.o_proj.* missing",
        ),
    ],
)
def test_a_config_that_is_not_implemented_is_named(changes, message, tmp_path):
    saved(tmp_path, LLAMA.replace(lora=LORA))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        models.load_adapter(tmp_path, LLAMA)


def test_a_folder_that_is_no_adapter_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no adapter_config.json: not an adapter in PEFT's format"):
        models.load_adapter(tmp_path, LLAMA)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"adapter_config.json: not JSON"):
        models.load_adapter(tmp_path, LLAMA)
    saved(tmp_path, LLAMA.replace(lora=LORA))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"adapter_model.safetensors: damaged safetensors file"):
        models.load_adapter(tmp_path, LLAMA)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin: pickled weights can run code"):
        models.load_adapter(tmp_path, LLAMA)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"adapter_model.safetensors: missing"):
        models.load_adapter(tmp_path, LLAMA)
    with pytest.raises(InputError, match="no such folder"):
        models.load_adapter(tmp_path / "elsewhere", LLAMA)
    with pytest.raises(InputError, match=r"ModelConfig.lora"):
        models.save_adapter(tmp_path, LLAMA, {})
