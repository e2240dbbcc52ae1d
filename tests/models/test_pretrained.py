"""Hugging Face folders in and out without torch: golden fixtures, round trips, one clear line for every bad folder."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models, sharding
from jaxalign.errors import InputError
from tests.models.tiny import GPT2, LLAMA, random_params, relative_error
from tests.tolerances import PARITY_LOGITS

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("llama_tied", "llama_untied_biased", "gpt2")


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden folder that a test may damage."""

    def copy(name="llama_tied"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        return tmp_path / name

    return copy


def edit_config(folder, **changes):
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value != "DELETE"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits(name):
    config, params = models.load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    logits = models.logits(config, params, jnp.asarray(expected["tokens"]))
    assert relative_error(logits, expected["logits"]) <= PARITY_LOGITS


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_tree_is_the_tree_init_makes(name):
    config, params = models.load_pretrained(GOLDEN / name)
    made = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made
    )


@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_the_same_files_back(name, tmp_path):
    config, params = models.load_pretrained(GOLDEN / name)
    config, params = models.restack(config, params, (1, 1))
    models.save_pretrained(tmp_path / "out", config, params)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", GOLDEN / name))
    assert set(ours) == set(theirs)
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", GOLDEN / name))
    added = {"rope_theta"} if name != "gpt2" else set()  # for readers that know only the older form
    assert set(ours) - set(theirs) <= added
    assert {key for key in theirs if theirs[key] != ours.get(key)} <= {"transformers_version"}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == theirs["eos_token_id"] == 2
    again, _ = models.load_pretrained(tmp_path / "out")
    assert again.replace(stacks=(1, 1)) == config


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_is_the_parameters_and_is_saved(dtype, tmp_path):
    config, params = models.load_pretrained(GOLDEN / "gpt2", dtype=dtype)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    models.save_pretrained(tmp_path, config, params)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    _, again = models.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_loading_onto_a_mesh(tmp_path):
    params = random_params(LLAMA)
    models.save_pretrained(tmp_path, LLAMA, params)
    mesh = sharding.make_mesh(1, 4, 2)
    config, loaded = models.load_pretrained(tmp_path, mesh=mesh)
    expected = sharding.tree_shardings(models.logical_axes(config), loaded, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == expected
    assert not loaded["stacks"]["0"]["query"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    models.save_pretrained(tmp_path / "again", config, loaded)
    _, back = models.load_pretrained(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_sharded_files(folder):
    path = folder()
    tensors = load_file(path / "model.safetensors")
    halves = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, path / file)
    index = {"weight_map": {name: file for file, names in halves.items() for name in names}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.safetensors").unlink()
    _, params = models.load_pretrained(path)
    jax.tree.map(np.testing.assert_array_equal, params, models.load_pretrained(GOLDEN / "llama_tied")[1])
    (path / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors: missing"):
        models.load_pretrained(path)


def test_a_bare_model_without_prefix_and_with_its_constant_buffers(folder):
    path = folder("gpt2")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)

    edit_tensors(path, strip)
    _, params = models.load_pretrained(path)
    jax.tree.map(np.testing.assert_array_equal, params, models.load_pretrained(GOLDEN / "gpt2")[1])


def test_a_tied_matrix_stored_twice(folder):
    path = folder()
    edit_tensors(path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert "unembed" not in models.load_pretrained(path)[1]


def test_rope_theta_where_older_files_have_it(folder):
    path = folder()
    edit_config(path, rope_parameters="DELETE", rope_theta=77.0)
    assert models.load_pretrained(path)[0].rope_theta == 77.0
    edit_config(path, rope_theta="DELETE")
    assert models.load_pretrained(path)[0].rope_theta == 10000.0


class _Tokenizer:
    bos_token_id, eos_token_id, pad_token_id = 7, 8, 9

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{}")


def test_the_tokenizer_is_saved_and_fills_missing_special_tokens(tmp_path):
    config = LLAMA.replace(extra=(("eos_token_id", (1, 2)),))
    models.save_pretrained(tmp_path, config, random_params(LLAMA), tokenizer=_Tokenizer())
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (7, [1, 2], 9)
    assert (tmp_path / "tokenizer.json").is_file()
    assert dict(models.load_pretrained(tmp_path)[0].extra)["eos_token_id"] == (1, 2)


def fails(folder, *parts):
    with pytest.raises(InputError) as error:
        models.load_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_no_such_folder(tmp_path):
    fails(tmp_path / "nothing", "no such folder")
    fails(str(tmp_path / "nothing"), "no such folder")
    fails(GOLDEN / "make_golden.py", "a file, not a model folder")


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("no network\nand a long trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    fails("somebody/some-model", "somebody/some-model", "no network")


def test_a_hub_id_downloads_weights_and_tokenizer_only(monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        return str(GOLDEN / "gpt2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config, _ = models.load_pretrained("somebody/some-model")
    assert config.family == "gpt2"
    assert "*.safetensors" in asked["somebody/some-model"]
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["somebody/some-model"])


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
        ({"auto_map": {"AutoModel": "x.Y"}}, ("auto_map", "never")),
        ({"hidden_size": "DELETE"}, ("hidden_size", "missing")),
        ({"hidden_size": "24"}, ("hidden_size", "'24'")),
        ({"num_key_value_heads": 3}, ("kv_heads",)),
        ({"hidden_act": "mish"}, ("hidden_act", "'mish'")),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ("rope_scaling contradicts rope_parameters",)),
        ({"rope_parameters": {"rope_type": "llama3"}}, ("rope_parameters.factor", "None")),
        ({"rope_parameters": {"rope_type": "default", "factor": 8.0}}, ("rope_parameters.factor",)),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
        ({"rope_theta": 3.0}, ("rope_theta", "contradicts")),
        ({"sliding_window": 128}, ("sliding_window = 128",)),
        ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
        ({"clip_qkv": 8.0}, ("'clip_qkv'", "unknown")),
    ],
)
def test_a_config_field_that_is_not_implemented_is_named(folder, changes, parts):
    path = folder()
    edit_config(path, **changes)
    fails(path, str(path / "config.json") if "kv_heads" not in parts else "ModelConfig", *parts)


@pytest.mark.parametrize(
    "changes", [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}]
)
def test_gpt2_variants_that_are_not_implemented(folder, changes):
    path = folder("gpt2")
    edit_config(path, **changes)
    fails(path, next(iter(changes)))


def test_no_weights_and_pickled_weights(folder):
    path = folder()
    (path / "model.safetensors").unlink()
    fails(path, "no model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"")
    fails(path, "pytorch_model.bin", "save_pretrained")


def test_damaged_weights(folder):
    path = folder()
    (path / "model.safetensors").write_bytes(b"not a safetensors file")
    fails(path, "model.safetensors", "damaged")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), ("'model.layers.1.mlp.up_proj.weight'", "missing")),
        (lambda t: t.update({"model.norm.weight": np.ones(5, np.float32)}), ("model.norm.weight", "(5,)", "(24,)")),
        (lambda t: t.update({"score.weight": np.ones((1, 24), np.float32)}), ("unexpected", "'score.weight'")),
        (lambda t: t.update({"model.norm.weight": np.ones(24, np.int8)}), ("model.norm.weight", "I8")),
    ],
)
def test_a_bad_tensor_is_named(folder, change, parts):
    path = folder()
    edit_tensors(path, change)
    fails(path, str(path), *parts)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LLAMA.replace(norm="layer"), "norm"),
        (LLAMA.replace(position="learned"), "position"),
        (LLAMA.replace(gated_mlp=False), "gated_mlp"),
        (GPT2.replace(norm="rms"), "norm"),
        (GPT2.replace(kv_heads=2), "kv_heads"),
        (GPT2.replace(head_dim=8), "head_dim"),
        (LLAMA.replace(family="mine"), "family"),
    ],
)
def test_a_model_that_no_folder_can_hold(config, field, tmp_path):
    with pytest.raises(InputError, match=f"ModelConfig.{field}"):
        models.save_pretrained(tmp_path / "out", config, {})
    assert not (tmp_path / "out").exists()


def test_parameters_that_do_not_fit_their_config(tmp_path):
    params = random_params(LLAMA)
    with pytest.raises(InputError, match=r"final_norm.*None"):
        models.save_pretrained(tmp_path / "out", LLAMA, {k: v for k, v in params.items() if k != "final_norm"})
    wrong = {**params, "unembed": {"kernel": jnp.ones((3, 24))}}
    with pytest.raises(InputError, match=r"unembed.*\(3, 24\)"):
        models.save_pretrained(tmp_path / "out", LLAMA, wrong)
