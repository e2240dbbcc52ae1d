"""Live parity with transformers' torch models on tiny random weights: layer by layer, and weights both ways."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxalign import models
from jaxalign.models import ModelConfig
from tests.models.tiny import relative_error
from tests.tolerances import PARITY_HIDDEN, PARITY_LOGITS

VOCABULARY = 97
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.15,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes}))


def gpt2(**changes):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **changes}))


CASES = {
    "llama_tied": lambda: llama(num_attention_heads=4, tie_word_embeddings=True),
    "llama_untied": lambda: llama(num_attention_heads=4),
    "llama_gqa": lambda: llama(num_attention_heads=4, num_key_value_heads=2),
    "llama_mqa_head_dim_biases": lambda: llama(
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, hidden_act="gelu_pytorch_tanh",
    ),
    "gpt2": gpt2,
    "gpt2_untied_inner_relu": lambda: gpt2(tie_word_embeddings=False, n_inner=48, activation_function="relu"),
    "gpt2_exact_gelu": lambda: gpt2(activation_function="gelu"),
}  # fmt: skip


@pytest.fixture(params=CASES)
def theirs(request):
    """A torch model with random biases and norms too: their constants would hide a swap."""
    torch.manual_seed(0)
    model = CASES[request.param]().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, VOCABULARY, (3, 17))


def torch_run(model, tokens, **kwargs):
    with torch.no_grad():
        return model(torch.from_numpy(tokens), **kwargs)


def test_hidden_states_layer_by_layer_and_logits(theirs, tokens, tmp_path):
    theirs.save_pretrained(tmp_path)
    config, params = models.load_pretrained(tmp_path)
    output = torch_run(theirs, tokens, output_hidden_states=True)
    for layers in range(1, config.layers):
        split_config, split = models.restack(config, params, (layers, config.layers - layers))
        hidden = models.trunk(split_config, split, jnp.asarray(tokens))
        assert relative_error(hidden, output.hidden_states[layers].numpy()) <= PARITY_HIDDEN, f"layer {layers}"
    hidden = models.apply(config, params, jnp.asarray(tokens))
    assert relative_error(hidden, output.hidden_states[-1].numpy()) <= PARITY_HIDDEN
    logits = models.unembed(config, params, hidden)
    assert relative_error(logits, output.logits.numpy()) <= PARITY_LOGITS


def test_left_padding(theirs, tokens, tmp_path):
    theirs.save_pretrained(tmp_path)
    config, params = models.load_pretrained(tmp_path)
    example = np.ones_like(tokens)
    example[0, :5] = 0
    positions = np.maximum(example.cumsum(-1) - 1, 0)
    output = torch_run(
        theirs, tokens, attention_mask=torch.from_numpy(example), position_ids=torch.from_numpy(positions)
    )
    logits = models.logits(config, params, jnp.asarray(tokens), example=jnp.asarray(example))
    assert relative_error(logits[example == 1], output.logits.numpy()[example == 1]) <= PARITY_LOGITS


def test_transformers_opens_what_we_save(theirs, tokens, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = models.load_pretrained(tmp_path / "theirs")
    models.save_pretrained(tmp_path / "ours", config, params)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if len(found)} == {}
    np.testing.assert_array_equal(torch_run(again.eval(), tokens).logits, torch_run(theirs, tokens).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_born_here_opens_there(family, tokens, tmp_path):
    import jax

    config = ModelConfig(
        family="llama", vocab_size=VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48,
        max_positions=64, tied_embeddings=True,
    )  # fmt: skip
    if family == "gpt2":
        config = config.replace(
            family="gpt2", kv_heads=4, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
            attention_bias=True, mlp_bias=True,
        )  # fmt: skip
    params = models.init(config, jax.random.key(0))
    models.save_pretrained(tmp_path, config, params)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if len(found)} == {}
    assert theirs.config.eos_token_id is None
    logits = models.logits(config, params, jnp.asarray(tokens))
    assert relative_error(logits, torch_run(theirs.eval(), tokens).logits.numpy()) <= PARITY_LOGITS


def test_bfloat16_weights_keep_every_bit(tokens, tmp_path):
    import jax

    theirs = llama(num_attention_heads=4).to(torch.bfloat16).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = models.load_pretrained(tmp_path / "theirs")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    models.save_pretrained(tmp_path / "ours", config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
