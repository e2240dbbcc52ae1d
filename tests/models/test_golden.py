"""Every family against torch's own logits, without torch: tiny folders that transformers saved, and old ones' ways."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.models.families import FAMILIES
from tests.models.tiny import hidden_states, relative_error
from tests.tolerances import PARITY_LOGITS

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))
MASK = np.ones((1, 6, 6), np.float32)  # what old folders hold as a constant


def families():
    return {json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in NAMES}


def test_every_family_has_a_golden_folder():
    assert families() == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_torchs(name):
    config, params = models.load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    logits = models.unembed(config, params, hidden_states(config, params, jnp.asarray(expected["tokens"])))
    assert relative_error(logits, expected["logits"]) <= PARITY_LOGITS


@pytest.mark.parametrize("name", NAMES)
def test_decoding_over_padding_gives_torchs_logits(name):
    config, params = models.load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    tokens, logits = expected["tokens"], expected["logits"]
    rows, length = tokens.shape
    padding = np.array([[4], [0]])  # columns before each row's first token, which nothing may see
    columns = np.arange(length + 4)
    positions = columns - padding
    laid = np.take_along_axis(tokens, np.clip(positions, 0, length - 1), axis=1)
    visible = (positions >= 0)[:, None] & (columns[None, None] <= columns[None, :, None])
    run = jax.jit(models.extend, static_argnums=0)
    cache = models.init_cache(config, rows, len(columns))
    prepared = models.unstack(config, params)
    hidden = []
    for start in range(0, len(columns), 5):  # three calls of one program
        part = slice(start, start + 5)
        out, cache = run(
            config, prepared, laid[:, part], cache, column=start, positions=np.maximum(positions, 0)[:, part],
            visible=visible[:, part],
        )  # fmt: skip
        hidden.append(out)
    found = np.asarray(models.unembed(config, prepared, jnp.concatenate(hidden, axis=1)))
    for row in range(rows):
        real = (positions[row] >= 0) & (positions[row] < length)
        assert relative_error(found[row, real], logits[row]) <= PARITY_LOGITS


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_tree_is_the_tree_init_makes_and_goes_back_bit_for_bit(name, tmp_path):
    config, params = models.load_pretrained(GOLDEN / name)
    made = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), made
    )
    models.save_pretrained(tmp_path, config, params)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN / name))
    assert set(ours) == set(theirs)
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(ours[tensor], value, err_msg=tensor)
    assert models.load_config(tmp_path) == config


@pytest.fixture
def renamed(tmp_path):
    """A golden folder's copy with other tensors, loaded beside the original: (ours, original)."""

    def load(name, change):
        shutil.copytree(GOLDEN / name, tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        tensors = load_file(path)
        save_file(change(tensors), path)
        return models.load_pretrained(tmp_path / name)[1], models.load_pretrained(GOLDEN / name)[1]

    return load


def assert_same(trees):
    ours, original = trees
    assert jax.tree.structure(ours) == jax.tree.structure(original)
    jax.tree.map(np.testing.assert_array_equal, ours, original)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("gpt2", ["transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"]),
        ("gptj", ["transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"]),
        ("gpt_neox", [
            "gpt_neox.layers.{}.attention.bias", "gpt_neox.layers.{}.attention.masked_bias",
            "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
        ]),
        ("llama_tied", ["model.layers.{}.self_attn.rotary_emb.inv_freq"]),
        ("opt", ["model.decoder.version"]),
    ],
)  # fmt: skip
def test_masks_and_tables_of_old_folders_are_passed_over(renamed, name, constants):
    added = {constant.format(layer): MASK for constant in constants for layer in range(2)}
    assert_same(renamed(name, lambda tensors: tensors | added))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("gpt2", "transformer."), ("gptj", "transformer."), ("gpt_neox", "gpt_neox."), ("opt", "model.")],
)
def test_names_of_a_bare_model(renamed, name, prefix):
    # OPT's first folders call tensors decoder.*, today's model.decoder.*; heads have no prefix in either.
    assert_same(renamed(name, lambda tensors: {key.removeprefix(prefix): value for key, value in tensors.items()}))


@pytest.mark.parametrize(
    ("name", "copy", "of"),
    [
        ("opt", "lm_head.weight", "model.decoder.embed_tokens.weight"),
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
    ],
)
def test_a_tied_matrix_stored_twice(renamed, name, copy, of):
    assert_same(renamed(name, lambda tensors: tensors | {copy: tensors[of].copy()}))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gptj", {"lm_head.bias": None}, "lm_head.bias"),
        ("gpt_neox", {"embed_out.weight": None}, "embed_out.weight"),
        ("opt_350m", {"model.decoder.project_in.weight": None}, "project_in"),
        ("opt_350m", {"model.decoder.final_layer_norm.weight": np.ones(16, np.float32)}, "final_layer_norm"),
        ("opt", {"model.decoder.project_in.weight": np.ones((16, 16), np.float32)}, "project_in"),
        ("opt", {"model.decoder.embed_positions.weight": np.ones((32, 16), np.float32)}, r"\(34, 16\)"),
    ],
)
def test_a_tensor_that_the_config_does_not_fit_is_named(renamed, name, change, message):
    def changed(tensors):
        return {key: value for key, value in (tensors | change).items() if value is not None}

    with pytest.raises(InputError, match=message):
        renamed(name, changed)
