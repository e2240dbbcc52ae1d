"""Every checked feature of every family, as tiny random torch models: the one table the parity tests share.

A family's entry is {name of a case: constructor of its causal language model}. ``test_transformers.py`` runs every
check on every case; a new family, or a new feature of one, is a new line here.

Write constructors with ``tiny``: it gives the sizes that every family spells differently. Sequences of the tests are
``LENGTH`` tokens long: choose sliding windows shorter.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

VOCABULARY = 97
LENGTH = 17
POSITIONS = 64
SIZES = {"vocab_size": VOCABULARY, "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

Case = Callable[[], transformers.PreTrainedModel]


def tiny(model: str, config: str, **fields: Any) -> transformers.PreTrainedModel:
    """``transformers.<model>(transformers.<config>(**fields))``, fields on top of ``SIZES``."""
    return getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **fields}))


def llama(**fields: Any) -> transformers.PreTrainedModel:
    sizes = {
        "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    return tiny("LlamaForCausalLM", "LlamaConfig", **{**sizes, **fields})


def gpt2(**fields: Any) -> transformers.PreTrainedModel:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": POSITIONS}
    return tiny("GPT2LMHeadModel", "GPT2Config", **{**sizes, **fields})


CASES: Mapping[str, Mapping[str, Case]] = {
    "llama": {
        "tied": lambda: llama(tie_word_embeddings=True),
        "untied": llama,
        "gqa": lambda: llama(num_key_value_heads=2),
        "mqa_head_dim_biases": lambda: llama(
            num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5}, hidden_act="gelu_pytorch_tanh",
        ),
    },
    "gpt2": {
        "plain": gpt2,
        "untied_inner_relu": lambda: gpt2(tie_word_embeddings=False, n_inner=48, activation_function="relu"),
        "exact_gelu": lambda: gpt2(activation_function="gelu"),
    },
}  # fmt: skip
"""Family (``model_type``) -> name -> constructor."""


def build(family: str, name: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The case's model in evaluation mode, biases and norms random too: their constants would hide a swap."""
    torch.manual_seed(0)
    model = CASES[family][name]().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.to(dtype)
