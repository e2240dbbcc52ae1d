"""Encoder classifiers beside transformers' torch models, on tiny random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxalign import models
from jaxalign.models.encoders import encode
from tests.models.tiny import relative_error
from tests.tolerances import PARITY_HIDDEN, PARITY_LOGITS

VOCABULARY, LENGTHS = 61, (15, 1, 8, 11)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 20, "initializer_range": 0.2,
}  # fmt: skip
DISTIL = {
    "vocab_size": VOCABULARY, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 20,
    "initializer_range": 0.2,
}  # fmt: skip
CASES = {
    "roberta": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, type_vocab_size=1, layer_norm_eps=1e-5)
    ),
    "roberta_three_labels_other_padding": lambda: transformers.RobertaForSequenceClassification(
        transformers.RobertaConfig(**SIZES, pad_token_id=3, num_labels=3, hidden_act="gelu_new")
    ),
    "xlm_roberta": lambda: transformers.XLMRobertaForSequenceClassification(transformers.XLMRobertaConfig(**SIZES)),
    "camembert": lambda: transformers.CamembertForSequenceClassification(transformers.CamembertConfig(**SIZES)),
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
    "bert_regression_relu": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, num_labels=1, hidden_act="relu", type_vocab_size=3)
    ),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**DISTIL)),
    "distilbert_sines": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(**DISTIL, sinusoidal_pos_embds=True, num_labels=4)
    ),
}


@pytest.fixture(params=CASES)
def both(request, tmp_path):
    """(torch model, config, params); random biases and norms too: their constants would hide a swap."""
    torch.manual_seed(0)
    theirs = CASES[request.param]().eval()
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    return theirs, *models.load_classifier(tmp_path)


def batch(theirs):
    """Right-padded rows of random ids, none of them padding."""
    padding = theirs.config.pad_token_id
    tokens = np.random.default_rng(0).integers(padding + 1, VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.asarray(LENGTHS)[:, None]
    return np.where(mask, tokens, padding), mask


def torch_run(theirs, tokens, mask, **options):
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(np.int64)), **options)


def test_hidden_states_and_logits(both):
    theirs, config, params = both
    tokens, mask = batch(theirs)
    output = torch_run(theirs, tokens, mask, output_hidden_states=True)
    for layers in range(1, config.layers + 1):
        lowest = {**params, "stacks": {"0": _first(params["stacks"]["0"], layers)}}
        hidden = encode(config, lowest, jnp.asarray(tokens), jnp.asarray(mask))
        assert relative_error(hidden[mask], output.hidden_states[layers].numpy()[mask]) <= PARITY_HIDDEN, layers
    logits = models.classify(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    assert logits.shape == (len(LENGTHS), theirs.config.num_labels)
    assert np.ptp(logits, axis=0).max() > 0.1
    assert relative_error(logits, output.logits.numpy()) <= PARITY_LOGITS


def test_left_padding_and_rows_alone(both):
    theirs, config, params = both
    tokens, mask = batch(theirs)
    rolled = [np.roll(array, shift, axis=0) for array, shift in ((tokens[2], 7), (mask[2], 7))]
    left = models.classify(config, params, jnp.asarray(rolled[0][None]), jnp.asarray(rolled[1][None]))
    alone = tokens[2:3, : LENGTHS[2]]
    expected = torch_run(theirs, alone, np.ones_like(alone)).logits.numpy()
    assert relative_error(left, expected) <= PARITY_LOGITS


@pytest.mark.parametrize("case", ["roberta", "roberta_three_labels_other_padding", "bert", "distilbert"])
def test_a_padding_token_inside_a_text(case, tmp_path):
    """RoBERTa gives it no position of its own, whatever the attention mask says; BERT does."""
    torch.manual_seed(0)
    theirs = CASES[case]().eval()
    theirs.save_pretrained(tmp_path)
    config, params = models.load_classifier(tmp_path)
    tokens = np.random.default_rng(1).integers(theirs.config.pad_token_id + 1, VOCABULARY, (2, 9))
    tokens[0, 4] = theirs.config.pad_token_id
    mask = np.ones_like(tokens)
    logits = models.classify(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    assert relative_error(logits, torch_run(theirs, tokens, mask).logits.numpy()) <= PARITY_LOGITS


def test_the_first_names_of_a_norm(tmp_path):
    """BERT's first files say gamma and beta; transformers reads them, so do we."""
    from safetensors.numpy import load_file, save_file

    theirs = CASES["bert"]().eval()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in load_file(path).items()
    }
    assert any("gamma" in name for name in renamed)
    save_file(renamed, path, metadata={"format": "pt"})
    tokens, mask = batch(theirs)
    logits = models.classify(*models.load_classifier(tmp_path), jnp.asarray(tokens), jnp.asarray(mask))
    assert relative_error(logits, torch_run(theirs, tokens, mask).logits.numpy()) <= PARITY_LOGITS


def _first(stack, layers):
    return {part: {leaf: array[:layers] for leaf, array in leaves.items()} for part, leaves in stack.items()}
