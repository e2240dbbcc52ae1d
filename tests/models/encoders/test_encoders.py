"""Encoder classifiers without torch: golden logits, padding, precision, one clear line for every bad folder."""

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
from jaxalign.models.encoders import EncoderConfig
from tests.models.tiny import relative_error
from tests.tolerances import BFLOAT16, FLOAT32, PARITY_LOGITS

GOLDEN = Path(__file__).parents[1] / "golden" / "encoders"
NAMES = ("roberta", "bert", "distilbert")
classify = jax.jit(models.classify, static_argnames="config")


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden folder that a test may damage."""

    def copy(name="roberta"):
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


def golden(name):
    with np.load(GOLDEN / name / "expected.npz") as file:
        return file["tokens"], file["mask"], file["logits"]


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits(name):
    config, params = models.load_classifier(GOLDEN / name)
    tokens, mask, expected = golden(name)
    logits = classify(config, params, tokens, mask)
    assert (logits.dtype, logits.shape) == (jnp.float32, (3, config.labels))
    assert relative_error(logits, expected) <= PARITY_LOGITS


@pytest.mark.parametrize("name", NAMES)
def test_the_size_is_known_without_the_weights(name):
    _, params = models.load_classifier(GOLDEN / name)
    assert models.classifier_size(GOLDEN / name) == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_mates_change_nothing(name):
    """The second row: on the left of its padding, in its middle, with other ids there, beside other rows, alone."""
    config, params = models.load_classifier(GOLDEN / name)
    tokens, mask, expected = golden(name)
    row, length = tokens[1], mask[1].sum()
    size = len(row)
    columns = np.sort(np.random.default_rng(0).permutation(size)[:length])
    rows = np.full((3, size), 7)
    masks = np.zeros((3, size), bool)
    for index, where in enumerate((np.arange(size - length, size), columns, np.arange(length))):
        rows[index, where] = row[:length]
        masks[index, where] = True
    logits = classify(config, params, rows, masks)
    assert relative_error(logits, np.broadcast_to(expected[1], logits.shape)) <= FLOAT32
    alone = classify(config, params, row[None, :length], np.ones((1, length), bool))
    assert relative_error(alone, expected[1:2]) <= FLOAT32


def test_no_real_token_is_a_number():
    """The rows that fill a batch up."""
    config, params = models.load_classifier(GOLDEN / "roberta")
    tokens, mask, _ = golden("roberta")
    assert np.isfinite(classify(config, params, tokens, np.zeros_like(mask))).all()


def test_what_the_tables_do_not_hold_is_not_a_number():
    config, params = models.load_classifier(GOLDEN / "roberta")
    assert config.max_positions == 14
    tokens, mask = np.full((3, 15), 5), np.ones((3, 15), bool)
    mask[1, 3], tokens[2, 2] = False, 41
    mask[2, 3] = False
    logits = np.asarray(classify(config, params, tokens, mask))
    np.testing.assert_array_equal(np.isfinite(logits).all(-1), [False, True, False])


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name):
    config, params = models.load_classifier(GOLDEN / name, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    tokens, mask, expected = golden(name)
    logits = classify(config, params, tokens, mask)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, expected) <= config.layers * BFLOAT16  # every layer rounds its own products


def test_dtype_none_keeps_the_file_s(folder):
    path = folder()
    edit_tensors(path, lambda t: t.update({name: value.astype(np.float16) for name, value in t.items()}))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(models.load_classifier(path, dtype=None)[1])} == {"float16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(models.load_classifier(path)[1])} == {"float32"}


def test_what_older_files_carry(folder):
    path = folder("bert")

    def age(tensors):
        for name in list(tensors):
            tensors[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
                tensors.pop(name)
            )
        tensors["bert.embeddings.position_ids"] = np.arange(16)[None]

    edit_tensors(path, age)
    edit_config(path, id2label="DELETE", num_labels=3, pooler_type="first_token_transform", pruned_heads={}, top_k=50)
    config, params = models.load_classifier(path)
    tokens, mask, expected = golden("bert")
    assert relative_error(classify(config, params, tokens, mask), expected) <= PARITY_LOGITS


def test_labels(folder):
    assert models.load_labels(GOLDEN / "roberta") == models.Labels(("NEGATIVE", "POSITIVE"), exclusive=True)
    path = folder("bert")
    edit_config(path, id2label={"1": "b", "0": "a"}, problem_type="multi_label_classification")
    assert models.load_labels(path) == models.Labels(("a", "b"), exclusive=False)
    edit_config(path, id2label={"0": "score"}, problem_type="DELETE")
    assert models.load_labels(path) == models.Labels(("score",), exclusive=False)
    edit_config(path, id2label="DELETE")
    assert models.load_labels(path) == models.Labels(("LABEL_0", "LABEL_1"), exclusive=True)


def fails(folder, *parts):
    with pytest.raises(InputError) as error:
        models.load_classifier(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "deberta-v2"}, ("'deberta-v2'", "roberta, xlm-roberta, camembert, bert, distilbert")),
        ({"model_type": "DELETE"}, ("model_type = None",)),
        ({"architectures": ["RobertaForMaskedLM"]}, ("'RobertaForMaskedLM'", "RobertaForSequenceClassification")),
        ({"auto_map": {"AutoModel": "x.Y"}}, ("auto_map", "never")),
        ({"hidden_size": "DELETE"}, ("'hidden_size'", "missing")),
        ({"hidden_size": 15}, ("EncoderConfig.heads",)),
        ({"hidden_act": "mish"}, ("hidden_act", "'mish'")),
        ({"position_embedding_type": "relative_key"}, ('position_embedding_type = "relative_key"',)),
        ({"is_decoder": True}, ("is_decoder = true",)),
        ({"layer_norm_eps": "small"}, ("'layer_norm_eps'", "'small'")),
        ({"pad_token_id": None}, ("'pad_token_id'",)),
        ({"pad_token_id": 15}, ("max_position_embeddings = 16",)),
        ({"mixture_of_experts": 4}, ("'mixture_of_experts'", "unknown")),
        ({"id2label": {"0": "a", "2": "b"}}, ("id2label",)),
        ({"id2label": "DELETE", "num_labels": 0}, ("num_labels",)),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ("classifier.out_proj.weight", "(2, 16)", "(3, 16)")),
    ],
)
def test_a_config_field_that_is_not_implemented_is_named(folder, changes, parts):
    path = folder()
    edit_config(path, **changes)
    fails(path, *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda t: t.pop("classifier.dense.weight"), ("not a trained classifier", "1 of", "'classifier.dense.weight'")),
        (
            lambda t: t.pop("roberta.encoder.layer.1.output.dense.bias"),
            ("'roberta.encoder.layer.1.output.dense.bias'", "missing"),
        ),
        (lambda t: t.update({"lm_head.bias": np.ones(41, np.float32)}), ("unexpected", "'lm_head.bias'")),
        (
            lambda t: t.update({"classifier.out_proj.bias": np.ones(5, np.float32)}),
            ("classifier.out_proj.bias", "(5,)", "(2,)"),
        ),
    ],
)
def test_a_bad_tensor_is_named(folder, change, parts):
    path = folder()
    edit_tensors(path, change)
    fails(path, str(path), *parts)


def test_folders_that_hold_no_classifier(folder, tmp_path):
    fails(tmp_path / "nothing", "no such folder")
    fails(GOLDEN.parent / "gpt2", "not a classifier", "without a score head")
    path = folder()
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"")
    fails(path, "pytorch_model.bin", "save_pretrained")
    (path / "config.json").write_text("{")
    fails(path, "config.json", "not JSON")
    (path / "config.json").unlink()
    fails(path, "no config.json")


def test_choices_that_do_not_exist():
    sizes = {"vocab_size": 4, "width": 4, "layers": 1, "heads": 2, "mlp_width": 4, "max_positions": 4, "labels": 2}
    for changes, field in (({"activation": "mish"}, "activation"), ({"heads": 3}, "heads"), ({"labels": 0}, "labels")):
        with pytest.raises(InputError, match=f"EncoderConfig.{field}"):
            EncoderConfig(**{**sizes, **changes})
