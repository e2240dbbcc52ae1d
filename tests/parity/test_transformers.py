"""Live parity with transformers' torch models on tiny random weights: every check on every case of ``cases.py``."""

import copy
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from jaxalign import models
from jaxalign.models.families import FAMILIES
from tests.models.tiny import hidden_states, relative_error
from tests.parity.cases import CASES, LENGTH, VOCABULARY, build
from tests.tolerances import FLOAT32, PARITY_HIDDEN, PARITY_LOGITS

ROWS = 3
ALL = [(family, case) for family, cases in CASES.items() for case in cases]
LABELS = {pair: 1 + list(CASES[pair[0]]).index(pair[1]) % 3 for pair in ALL}
"""Outputs of each case's score head: 1 (a reward model), 2 (which transformers leaves unsaid in config.json), 3 ..."""


@dataclasses.dataclass
class Pair:
    """A torch model, the folder it was saved to, and what we read from there."""

    family: str
    case: str
    theirs: transformers.PreTrainedModel
    folder: Path
    config: models.ModelConfig
    params: dict


@pytest.fixture(scope="module", params=ALL, ids="-".join)
def pair(request, tmp_path_factory):
    family, case = request.param
    theirs = build(family, case)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    return Pair(family, case, theirs, folder, *models.load_pretrained(folder))


@pytest.fixture
def tokens():
    """int ``[ROWS, LENGTH]`` without 0, the cases' padding id: torch's classifiers look for it."""
    return np.random.default_rng(0).integers(1, VOCABULARY, (ROWS, LENGTH))


def torch_run(model, tokens, **inputs):
    with torch.no_grad():
        return model(torch.from_numpy(tokens), **{name: torch.from_numpy(value) for name, value in inputs.items()})


def padded(tokens, side):
    """The rows with 5, 0 and 2 tokens of padding: tokens, mask and positions (0 at padding)."""
    mask = np.ones_like(tokens)
    for row, count in enumerate((5, 0, 2)):
        mask[row, slice(0, count) if side == "left" else slice(LENGTH - count, LENGTH)] = 0
    return np.where(mask, tokens, 0), mask, np.maximum(mask.cumsum(-1) - 1, 0) * mask


def assert_opens_without_a_word(folder, auto_class):
    """Transformers' model of a folder, no weight missing, unexpected or of another shape."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if len(found)} == {}
    return model.eval()


def assert_same_weights(model, expected):
    """Bit for bit. Not of the logits: whether two products of equal weights agree to the last bit depends on how the
    weights lie in memory, which decides the kernel that a BLAS takes.
    """
    found, weights = model.state_dict(), expected.state_dict()
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name


def attention_of(theirs):
    """Not in config.json: which of its kernels transformers computed with."""
    return {"attn_implementation": theirs.config._attn_implementation}


def test_hidden_states_layer_by_layer_and_logits(pair, tokens):
    with torch.no_grad():
        output = pair.theirs(torch.from_numpy(tokens), output_hidden_states=True)
    for layers in range(1, pair.config.layers):
        config, params = models.restack(pair.config, pair.params, (layers, pair.config.layers - layers))
        hidden = models.trunk(config, params, jnp.asarray(tokens))
        assert relative_error(hidden, output.hidden_states[layers].numpy()) <= PARITY_HIDDEN, f"layer {layers}"
    hidden = hidden_states(pair.config, pair.params, jnp.asarray(tokens))
    assert relative_error(hidden, output.hidden_states[-1].numpy()) <= PARITY_HIDDEN
    logits = models.unembed(pair.config, pair.params, hidden)
    assert relative_error(logits, output.logits.numpy()) <= PARITY_LOGITS


def test_transformers_opens_what_we_save(pair, tokens, tmp_path):
    models.save_pretrained(tmp_path, pair.config, pair.params)
    again = assert_opens_without_a_word(tmp_path, transformers.AutoModelForCausalLM)
    again.set_attn_implementation(pair.theirs.config._attn_implementation)
    assert_same_weights(again, pair.theirs)
    expected = torch_run(pair.theirs, tokens).logits.numpy()
    assert relative_error(torch_run(again, tokens).logits.numpy(), expected) <= PARITY_LOGITS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_round_trip_keeps_every_name_and_every_bit(pair, dtype, tmp_path):
    theirs = build(pair.family, pair.case, dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = models.load_pretrained(tmp_path / "theirs")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {str(dtype).removeprefix("torch.")}
    models.save_pretrained(tmp_path / "ours", config, params)
    found, expected = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value), name
    assert models.load_config(tmp_path / "ours") == config


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_mates_change_nothing(pair, side, tokens):
    ids, mask, positions = padded(tokens, side)
    real = mask == 1
    ours = hidden_states(pair.config, pair.params, jnp.asarray(ids), example=jnp.asarray(mask))
    theirs = torch_run(pair.theirs, ids, attention_mask=mask, position_ids=positions).logits.numpy()
    assert relative_error(models.unembed(pair.config, pair.params, ours)[real], theirs[real]) <= PARITY_LOGITS

    whole = hidden_states(pair.config, pair.params, jnp.asarray(tokens))
    assert relative_error(ours[1], whole[1]) <= FLOAT32  # the row without padding, its mates otherwise
    if side == "right":  # tokens do not see what follows them
        assert relative_error(ours[real], whole[real]) <= FLOAT32
    others = ids.copy()
    others[1:] = (others[1:] + 1) % VOCABULARY
    others[0, mask[0] == 0] = 7
    again = hidden_states(pair.config, pair.params, jnp.asarray(others), example=jnp.asarray(mask))
    np.testing.assert_array_equal(again[0][real[0]], ours[0][real[0]])


def test_cached_decode_is_the_full_forward(pair, tokens):
    config, lengths, prompt = pair.config, np.array([9, 5, 7]), 9
    params = models.unstack(config, pair.params)
    # Columns: the prompt, right-padded to the widest, then one a step; padding is never seen.
    columns = np.arange(LENGTH)
    real = (columns < lengths[:, None]) | (columns >= prompt)
    positions = np.maximum(real.cumsum(-1) - 1, 0)
    visible = real[:, None] & (columns[None, None] <= columns[None, :, None])
    extend = jax.jit(models.extend, static_argnums=0)
    cache = models.init_cache(config, ROWS, LENGTH)
    hidden = []
    for start, end in [(0, prompt), *((at, at + 1) for at in range(prompt, LENGTH))]:
        part, cache = extend(
            config, params, jnp.asarray(tokens[:, start:end]), cache, column=jnp.asarray(start),
            positions=jnp.asarray(positions[:, start:end]), visible=jnp.asarray(visible[:, start:end]),
        )  # fmt: skip
        hidden.append(part)
    full = hidden_states(config, pair.params, jnp.asarray(tokens), example=jnp.asarray(real.astype(int)))
    assert relative_error(jnp.concatenate(hidden, axis=1)[real], full[real]) <= FLOAT32


def test_score_heads_there_and_back(pair, tokens, tmp_path):
    family, case = pair.family, pair.case
    if FAMILIES[family].classifier is None:
        pytest.skip(f"transformers has no classifier for {family}")
    labels = LABELS[family, case]
    torch.manual_seed(1)
    settings = copy.deepcopy(pair.theirs.config)
    settings.num_labels = labels
    theirs = transformers.AutoModelForSequenceClassification.from_config(settings, **attention_of(pair.theirs)).eval()
    assert type(theirs).__name__ == FAMILIES[family].classifier
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = models.load_pretrained(tmp_path / "theirs")
    assert config.labels == labels

    ids, mask, positions = padded(tokens, "right")
    expected = torch_run(theirs, ids, attention_mask=mask, position_ids=positions).logits.numpy()
    scores = models.score(config, params, hidden_states(config, params, jnp.asarray(ids), example=jnp.asarray(mask)))
    assert (scores.dtype, scores.shape) == (jnp.float32, (ROWS, LENGTH, labels))
    assert relative_error(scores[np.arange(ROWS), mask.sum(-1) - 1], expected) <= PARITY_LOGITS

    models.save_pretrained(tmp_path / "ours", config, params)
    again = assert_opens_without_a_word(tmp_path / "ours", transformers.AutoModelForSequenceClassification)
    again.set_attn_implementation(theirs.config._attn_implementation)
    assert again.num_labels == labels
    assert_same_weights(again, theirs)
    logits = torch_run(again, ids, attention_mask=mask, position_ids=positions).logits.numpy()
    assert relative_error(logits, expected) <= PARITY_LOGITS


@pytest.mark.parametrize("family", CASES)
def test_a_model_born_here_opens_there(family, tokens, tmp_path):
    case = next(iter(CASES[family]))
    theirs = build(family, case)
    theirs.save_pretrained(tmp_path / "theirs")
    config = models.load_config(tmp_path / "theirs").replace(extra=())
    params = models.init(config, jax.random.key(0))
    models.save_pretrained(tmp_path / "ours", config, params)
    again = assert_opens_without_a_word(tmp_path / "ours", transformers.AutoModelForCausalLM)
    again.set_attn_implementation(theirs.config._attn_implementation)
    assert again.config.eos_token_id is None
    logits = models.logits(config, params, jnp.asarray(tokens))
    assert relative_error(logits, torch_run(again, tokens).logits.numpy()) <= PARITY_LOGITS


def test_every_family_has_cases():
    assert set(CASES) == set(FAMILIES)
    assert all(CASES.values())
