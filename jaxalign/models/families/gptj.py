"""GPT-J: parallel blocks with one norm, rotary positions on part of each head, an unembedding with a bias.

Its rotary pairs are neighbours, (0, 1), (2, 3) ...; ours are halves apart. Rows of the query and key weights are put in
our order on the way in and back on the way out: the same scores, exactly.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.models._config import ModelConfig
from jaxalign.models.families._family import (
    Family,
    Weight,
    head,
    linear,
    norms,
    optional_int,
    permuted,
    plain,
    read_activation,
    read_extra,
    require_int,
)
from jaxalign.models.families._heads import head_dim
from jaxalign.models.families._held import held

KNOWN = {
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "rotary_dim", "activation_function",
    "layer_norm_epsilon", "tie_word_embeddings",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {
    "rotary": (True,),
    "scale_attn_weights": (True,),
    "quantization_config": (None,),
}
# Dropouts: recipes run without. summary_*: another head's.
INERT = frozenset({
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "n_ctx", "gradient_checkpointing",
})  # fmt: skip
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
DEFAULT_ROTARY_DIM = 64


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    width = require_int(fields, "n_embd", path)
    heads = require_int(fields, "n_head", path)
    size = head_dim(fields, ("n_embd", "n_head"), path)
    # Absent it has a default; null would rotate dimensions that a head does not have.
    rotated = require_int(fields, "rotary_dim", path) if "rotary_dim" in fields else DEFAULT_ROTARY_DIM
    return ModelConfig(
        family="gptj",
        vocab_size=require_int(fields, "vocab_size", path),
        width=width,
        layers=require_int(fields, "n_layer", path),
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        mlp_width=optional_int(fields, "n_inner", 4 * width, path),
        max_positions=optional_int(fields, "n_positions", 2048, path),
        norm="layer",
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
        block="parallel_one_norm",
        position="rotary",
        rotary_dim=rotated,
        activation=read_activation(fields, "activation_function", "gelu_new", path),
        gated_mlp=False,
        mlp_bias=True,
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        unembedding_bias=True,
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a GPT-J config.json."""
    written = {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None if config.mlp_width == 4 * config.width else config.mlp_width,
        "rotary_dim": _rotary_dim(config),
        "activation_function": ACTIVATION_TO_HF[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }
    return held(config, written, read_config)


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    v, d, f = config.vocab_size, (config.width,), (config.mlp_width,)
    per_head = (config.heads, config.head_dim)
    square = (config.width, config.width)
    layer = "transformer.h.{layer}."
    rotated = _rotary_dim(config)
    order = np.r_[0:rotated:2, 1:rotated:2, rotated : config.head_dim]
    return (
        plain("transformer.wte.weight", ("embed", "tokens"), (v, config.width)),
        permuted(layer + "attn.q_proj.weight", ("query", "kernel"), square, (*d, *per_head), order),
        permuted(layer + "attn.k_proj.weight", ("key", "kernel"), square, (*d, *per_head), order),
        *linear(layer + "attn.v_proj", "value", d, per_head, bias=False),
        *linear(layer + "attn.out_proj", "output", per_head, d, bias=False),
        *linear(layer + "mlp.fc_in", "up", d, f, bias=True),
        *linear(layer + "mlp.fc_out", "down", f, d, bias=True),
        *norms(config, {"attention_norm": layer + "ln_1", "final_norm": "transformer.ln_f"}),
        *head(config),
    )


def _rotary_dim(config: ModelConfig) -> int:
    return config.head_dim if config.rotary_dim is None else config.rotary_dim


FAMILY = Family(
    model_type="gptj",
    architectures=("GPTJForCausalLM", "GPTJModel"),
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="transformer.",
    classifier="GPTJForSequenceClassification",
    ignored=(".attn.bias", ".attn.masked_bias"),
    covers=("GPT-J 6B",),
    features=("parallel block with one norm", "part of each head rotated, in neighbouring pairs", "bias of the logits"),
)
