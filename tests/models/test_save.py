"""Folders out: shards and their index, score heads, files that come back as they were, and older saves left whole."""

import json
import os
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign import models, sharding
from jaxalign.errors import InputError
from tests.models.folders import INDEX, copy_golden, divide, edit_config, edit_tensors
from tests.models.tiny import GPT2, LLAMA, random_params


def read_json(path):
    return json.loads(path.read_text())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class Tokenizer:
    """What ``save_pretrained`` asks of one."""

    bos_token_id, eos_token_id, pad_token_id = 7, 8, 9

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("{}")
        (Path(folder) / "chat_template.jinja").write_text("{{ messages }}")
        (Path(folder) / "additional").mkdir()
        (Path(folder) / "additional" / "tool.jinja").write_text("{{ tools }}")


# Weights.


@pytest.mark.parametrize("stacks", [(3,), (1, 2)])
def test_shards_and_their_index(stacks, tmp_path):
    config, params = models.restack(LLAMA, random_params(LLAMA), stacks)
    models.save_pretrained(tmp_path, config, params, max_shard_bytes=12_000)
    index = read_json(tmp_path / INDEX)
    files = sorted({path.name for path in tmp_path.glob("*.safetensors")})
    assert len(files) > 3
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    held = {file: load_file(tmp_path / file) for file in files}
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    sizes = {file: sum(array.nbytes for array in tensors.values()) for file, tensors in held.items()}
    assert max(sizes.values()) <= 12_000
    assert index["metadata"] == {
        "total_size": sum(sizes.values()),
        "total_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    again_config, again = models.load_pretrained(tmp_path)
    assert_same(models.restack(again_config, again, stacks)[1], params)


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path):
    models.save_pretrained(tmp_path, LLAMA, random_params(LLAMA), max_shard_bytes=1)
    tensors = [list(load_file(path)) for path in tmp_path.glob("*.safetensors")]
    assert {len(names) for names in tensors} == {1}
    assert_same(models.load_pretrained(tmp_path)[1], random_params(LLAMA))
    with pytest.raises(InputError, match="max_shard_bytes"):
        models.save_pretrained(tmp_path, LLAMA, random_params(LLAMA), max_shard_bytes=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_each_leaf_keeps_its_dtype(dtype, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), random_params(GPT2))
    params["final_norm"]["scale"] = params["final_norm"]["scale"].astype("float32")
    models.save_pretrained(tmp_path, GPT2, params)
    assert read_json(tmp_path / "config.json")["dtype"] == dtype
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["transformer.ln_f.weight"].dtype == np.float32
    assert {array.dtype for name, array in stored.items() if name != "transformer.ln_f.weight"} == {jnp.dtype(dtype)}
    _, again = models.load_pretrained(tmp_path)
    assert jax.tree.map(lambda leaf: leaf.dtype, again) == jax.tree.map(lambda leaf: leaf.dtype, params)
    assert_same(again, params)


def test_from_a_mesh_and_from_the_host(tmp_path):
    params = random_params(LLAMA)
    layout = sharding.tree_shardings(models.logical_axes(LLAMA), params, sharding.make_mesh(2, 2, 2))
    models.save_pretrained(tmp_path / "mesh", LLAMA, sharding.shard_tree(params, layout))
    models.save_pretrained(tmp_path / "host", LLAMA, jax.tree.map(np.asarray, params))
    models.save_pretrained(tmp_path / "device", LLAMA, params)
    assert contents(tmp_path / "mesh") == contents(tmp_path / "device") == contents(tmp_path / "host")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LLAMA.replace(norm="layer"), "norm"),
        (GPT2.replace(kv_heads=2), "kv_heads"),
        (LLAMA.replace(family="mine"), "family"),
    ],
)
def test_a_model_that_no_folder_can_hold(config, field, tmp_path):
    with pytest.raises(InputError, match=f"ModelConfig.{field}"):
        models.save_pretrained(tmp_path / "out", config, {})
    assert not (tmp_path / "out").exists()


def test_parameters_that_do_not_fit_their_config(tmp_path):
    params = random_params(LLAMA)
    lora = {**params["stacks"]["0"]["query"], "lora_a": jnp.ones((3, 24, 2))}
    bad = {
        r"final_norm.*None": {name: tree for name, tree in params.items() if name != "final_norm"},
        r"unembed.*\(3, 24\)": {**params, "unembed": {"kernel": jnp.ones((3, 24))}},
        "lora_a.*merge the adapter": {**params, "stacks": {"0": {**params["stacks"]["0"], "query": lora}}},
        "I8|int8": jax.tree.map(lambda leaf: leaf.astype(jnp.int8), params),
    }
    for message, tree in bad.items():
        with pytest.raises(InputError, match=message):
            models.save_pretrained(tmp_path / "out", LLAMA, tree)
        assert not (tmp_path / "out").exists()


# The other files.


def test_the_tokenizer_is_saved_and_fills_missing_special_tokens(tmp_path):
    config = LLAMA.replace(extra=(("eos_token_id", (1, 2)), ("pad_token_id", None)))
    models.save_pretrained(tmp_path, config, random_params(LLAMA), tokenizer=Tokenizer())
    special = {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 9}
    assert special.items() <= read_json(tmp_path / "config.json").items()
    assert read_json(tmp_path / "generation_config.json") == {"_from_model_config": True, **special}
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "additional" / "tool.jinja").is_file()
    assert dict(models.load_config(tmp_path).extra)["eos_token_id"] == (1, 2)


def test_config_and_generation_config_come_back_as_they_were(tmp_path):
    folder = copy_golden(tmp_path)
    generation = {"eos_token_id": [2, 5], "temperature": 0.6, "stop_strings": ["é"], "_from_model_config": True,
                  "compile_config": {"dynamic": None, "modes": [{"a": 1}, []]}}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    edit_config(folder, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1}, problem_type=None,
                task_specific_params={"text-generation": {"max_length": 50}})  # fmt: skip
    config, params = models.load_pretrained(folder)
    assert config.labels == 0
    assert hash(config) == hash(models.load_config(folder))
    models.save_pretrained(tmp_path / "out", config, params)
    assert read_json(tmp_path / "out" / "generation_config.json") == generation
    ours, theirs = (read_json(path / "config.json") for path in (tmp_path / "out", folder))
    assert set(ours) - set(theirs) <= {"rope_theta"}  # for readers that know only the older form
    assert {name for name in theirs if ours.get(name) != theirs[name]} <= {"transformers_version"}
    assert models.load_config(tmp_path / "out") == config


def test_generation_config_that_is_not_json(tmp_path):
    folder = copy_golden(tmp_path)
    (folder / "generation_config.json").write_text("{,")
    with pytest.raises(InputError, match=r"generation_config\.json: not JSON"):
        models.load_config(folder)


# Score heads.


def classifier(labels, **changes):
    body = {name: tree for name, tree in random_params(LLAMA).items() if name != "unembed"}
    head = jnp.linspace(-1, 1, labels * LLAMA.width).reshape(labels, LLAMA.width)
    return LLAMA.replace(labels=labels, **changes), {**body, "score": {"kernel": head}}


def test_a_score_head_and_its_labels_come_back(tmp_path):
    names = {"0": "worse", "1": "same", "2": "better"}
    config, params = classifier(3)
    models.save_pretrained(tmp_path, config, params)
    edit_config(tmp_path, id2label=names, label2id={name: int(i) for i, name in names.items()}, pad_token_id=0,
                problem_type="regression")  # fmt: skip
    config, found = models.load_pretrained(tmp_path)
    assert config.labels == 3
    assert_same(found, params)
    models.save_pretrained(tmp_path / "again", config, found)
    fields = read_json(tmp_path / "again" / "config.json")
    assert fields["architectures"] == ["LlamaForSequenceClassification"]
    assert fields["id2label"] == names
    assert fields["label2id"] == {"worse": 0, "same": 1, "better": 2}
    assert (fields["problem_type"], fields["pad_token_id"]) == ("regression", 0)
    assert models.load_config(tmp_path / "again") == config


def test_a_reward_model_out_of_a_language_model(tmp_path):
    """Label names of another number of labels are not its own."""
    old = (("id2label", models._json.freeze({"0": "a", "1": "b"})), ("num_labels", 2))
    config, params = classifier(1, extra=old, tied_embeddings=True)
    models.save_pretrained(tmp_path, config, params, tokenizer=Tokenizer())
    fields = read_json(tmp_path / "config.json")
    assert fields["id2label"] == {"0": "LABEL_0"}
    assert fields["label2id"] == {"LABEL_0": 0}
    assert fields["pad_token_id"] == 9
    assert "num_labels" not in fields
    assert set(load_file(tmp_path / "model.safetensors")) >= {"score.weight", "model.embed_tokens.weight"}
    assert models.load_config(tmp_path).labels == 1


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"id2label": "DELETE"}, 2),
        ({"id2label": "DELETE", "num_labels": 5}, 5),
        ({"id2label": {"0": "x"}}, 1),
    ],
)
def test_how_many_labels(changes, labels, tmp_path):
    models.save_pretrained(tmp_path, *classifier(3))
    edit_config(tmp_path, **changes)
    assert models.load_config(tmp_path).labels == labels
    with pytest.raises(InputError, match=rf"score.weight.*\(3, 24\).*\({labels}, 24\)"):
        models.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": []}, "id2label"),
        ({"id2label": {}}, "id2label"),
        ({"num_labels": 4}, "num_labels = 4 contradicts the 3 names"),
        ({"id2label": "DELETE", "num_labels": 0}, "num_labels"),
    ],
)
def test_bad_labels(changes, message, tmp_path):
    models.save_pretrained(tmp_path, *classifier(3))
    edit_config(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        models.load_config(tmp_path)


# An older save in the same folder.


def test_a_save_replaces_an_older_one_whole(tmp_path):
    params = random_params(LLAMA)
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    models.save_pretrained(tmp_path, LLAMA, params, max_shard_bytes=10_000)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".partial").mkdir()  # of a save that was killed
    (tmp_path / ".partial" / "model.safetensors").write_text("half")
    models.save_pretrained(tmp_path, LLAMA, other)
    assert sorted(contents(tmp_path)) == ["config.json", "generation_config.json", "model.safetensors", "notes.txt"]
    assert_same(models.load_pretrained(tmp_path)[1], other)
    models.save_pretrained(tmp_path, LLAMA, params, max_shard_bytes=30_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert_same(models.load_pretrained(tmp_path)[1], params)
    assert not (tmp_path / ".partial").exists()


def test_shards_of_other_names_are_removed_too(tmp_path):
    folder = copy_golden(tmp_path)
    divide(folder)
    config, params = models.load_pretrained(folder)
    models.save_pretrained(folder, config, params)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.fixture
def small_files():
    """No file may grow past 20 kB: what a full disk does, for this process alone."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_leaves_an_older_save_as_it_was(tmp_path, request):
    params = random_params(LLAMA)
    models.save_pretrained(tmp_path / "old", LLAMA, params, tokenizer=Tokenizer(), max_shard_bytes=15_000)
    before = contents(tmp_path / "old")
    request.getfixturevalue("small_files")
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    for folder in ("old", "new"):
        with pytest.raises(InputError, match=f"{folder}: not saved: File too large") as error:
            models.save_pretrained(tmp_path / folder, LLAMA, other)
        assert "\n" not in str(error.value)
    assert contents(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "old" / ".partial").exists()


def test_a_place_that_is_taken(tmp_path):
    params = random_params(LLAMA)
    (tmp_path / "config.json" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match=r"not saved: a folder stands where a file has to go .*config\.json"):
        models.save_pretrained(tmp_path, LLAMA, params)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: not saved: Not a directory"):
        models.save_pretrained(tmp_path / "file", LLAMA, params)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="not saved: Permission denied"):
        models.save_pretrained(tmp_path, LLAMA, random_params(LLAMA))
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_fails(tmp_path):
    class Broken(Tokenizer):
        def save_pretrained(self, folder):
            raise RuntimeError("no vocabulary")

    with pytest.raises(RuntimeError, match="no vocabulary"):
        models.save_pretrained(tmp_path / "out", LLAMA, random_params(LLAMA), tokenizer=Broken())
    assert not (tmp_path / "out").exists()


def test_a_folder_may_be_saved_over_the_one_it_was_read_from(tmp_path):
    folder = copy_golden(tmp_path, "gpt2")
    config, params = models.load_pretrained(folder)
    edit = jax.tree.map(lambda leaf: 2 * leaf, params)
    models.save_pretrained(folder, config, edit)
    assert_same(models.load_pretrained(folder)[1], edit)
    edit_tensors(folder, lambda tensors: tensors.update({name: 3 * x for name, x in tensors.items()}))
    assert_same(params, models.load_pretrained(copy_golden(tmp_path / "x", "gpt2"))[1])
