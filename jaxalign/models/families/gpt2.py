"""GPT-2 in all its sizes: learned positions, layer norm, biases everywhere, one fused query-key-value tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.models._config import ModelConfig
from jaxalign.models.families._family import (
    Family,
    Weight,
    head,
    norms,
    optional_int,
    plain,
    read_activation,
    read_extra,
    require_int,
    reshaped,
)
from jaxalign.models.families._heads import head_dim
from jaxalign.models.families._held import held

KNOWN = {
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "layer_norm_epsilon",
    "tie_word_embeddings",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "add_cross_attention": (None, False),
    "quantization_config": (None,),
}
# Dropouts: recipes run without. summary_*: another head's. reorder_and_upcast_attn: same values, float32 softmax.
INERT = frozenset({
    "resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx", "gradient_checkpointing",
})  # fmt: skip
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    width = require_int(fields, "n_embd", path)
    heads = require_int(fields, "n_head", path)
    return ModelConfig(
        family="gpt2",
        vocab_size=require_int(fields, "vocab_size", path),
        width=width,
        layers=require_int(fields, "n_layer", path),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim(fields, ("n_embd", "n_head"), path),
        mlp_width=optional_int(fields, "n_inner", 4 * width, path),
        max_positions=require_int(fields, "n_positions", path),
        norm="layer",
        norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
        position="learned",
        activation=read_activation(fields, "activation_function", "gelu_new", path),
        gated_mlp=False,
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        tied_embeddings=bool(fields.get("tie_word_embeddings", True)),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a GPT-2 config.json."""
    written = {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None if config.mlp_width == 4 * config.width else config.mlp_width,
        "activation_function": ACTIVATION_TO_HF[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }
    return held(config, written, read_config)


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names; GPT-2's Conv1D stores (in, out) already."""
    v, d, f, h, k = config.vocab_size, config.width, config.mlp_width, config.heads, config.head_dim
    layer = "transformer.h.{layer}."
    return (
        plain("transformer.wte.weight", ("embed", "tokens"), (v, d)),
        plain("transformer.wpe.weight", ("embed", "positions"), (config.max_positions, d)),
        _fused(layer + "attn.c_attn.weight", "kernel", (d, 3 * d), (d, h, k)),
        _fused(layer + "attn.c_attn.bias", "bias", (3 * d,), (h, k)),
        reshaped(layer + "attn.c_proj.weight", ("output", "kernel"), (d, d), (h, k, d)),
        plain(layer + "attn.c_proj.bias", ("output", "bias"), (d,)),
        plain(layer + "mlp.c_fc.weight", ("up", "kernel"), (d, f)),
        plain(layer + "mlp.c_fc.bias", ("up", "bias"), (f,)),
        plain(layer + "mlp.c_proj.weight", ("down", "kernel"), (f, d)),
        plain(layer + "mlp.c_proj.bias", ("down", "bias"), (d,)),
        *norms(config, {
            "attention_norm": layer + "ln_1", "mlp_norm": layer + "ln_2", "final_norm": "transformer.ln_f",
        }),
        *head(config),
    )  # fmt: skip


def _fused(name: str, leaf: str, shape: tuple[int, ...], leaf_shape: tuple[int, ...]) -> Weight:
    """One tensor [..., 3 D] that holds query, key and value side by side."""

    def split(array: np.ndarray) -> list[np.ndarray]:
        return [part.reshape(leaf_shape) for part in np.split(array, 3, axis=-1)]

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([part.reshape(*shape[:-1], -1) for part in parts], axis=-1)

    return Weight(name, (("query", leaf), ("key", leaf), ("value", leaf)), shape, split, join)


FAMILY = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="transformer.",
    classifier="GPT2ForSequenceClassification",
    ignored=(".attn.bias", ".attn.masked_bias"),
    covers=("GPT-2: 124M to 1.5B", "DistilGPT-2"),
    features=("fused projections", "learned positions", "biases", "tied or not"),
)
