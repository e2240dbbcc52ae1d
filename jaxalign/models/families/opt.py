"""OPT in all its sizes: learned positions from row 2 of their table, biases everywhere or nowhere.

OPT-350m is a model of its own: norms after the residual sums, none at the end, and embeddings of another width that are
projected in and out.
"""

from collections.abc import Mapping
from typing import Any

from jaxalign.models._config import ModelConfig
from jaxalign.models.families._family import (
    Family,
    Weight,
    head,
    linear,
    norms,
    optional_int,
    plain,
    read_activation,
    read_extra,
    require_int,
    transposed,
)
from jaxalign.models.families._heads import head_dim
from jaxalign.models.families._held import held

KNOWN = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim", "max_position_embeddings",
    "word_embed_proj_dim", "do_layer_norm_before", "_remove_final_layer_norm", "activation_function", "enable_bias",
    "tie_word_embeddings",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {
    "layer_norm_elementwise_affine": (True,),
    "learned_embeddings": (True,),
    "quantization_config": (None,),
}
# Dropouts: recipes run without.
INERT = frozenset({"dropout", "activation_dropout", "attention_dropout", "layerdrop", "init_std"})
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
POSITION_OFFSET = 2
NORM_EPSILON = 1e-5  # torch's default: config.json has no field for it


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    width = require_int(fields, "hidden_size", path)
    heads = require_int(fields, "num_attention_heads", path)
    embedding_width = optional_int(fields, "word_embed_proj_dim", width, path)
    pre_norm = bool(fields.get("do_layer_norm_before", True))
    biases = bool(fields.get("enable_bias", True))
    return ModelConfig(
        family="opt",
        vocab_size=require_int(fields, "vocab_size", path),
        width=width,
        layers=require_int(fields, "num_hidden_layers", path),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim(fields, ("hidden_size", "num_attention_heads"), path),
        mlp_width=require_int(fields, "ffn_dim", path),
        max_positions=optional_int(fields, "max_position_embeddings", 2048, path),
        norm="layer",
        norm_epsilon=NORM_EPSILON,
        block="pre_norm" if pre_norm else "post_norm",
        final_norm=pre_norm and not fields.get("_remove_final_layer_norm", False),
        position="learned",
        position_offset=POSITION_OFFSET,
        attention_bias=biases,
        attention_output_bias=biases,
        activation=read_activation(fields, "activation_function", "relu", path),
        gated_mlp=False,
        mlp_bias=biases,
        embedding_width=None if embedding_width == width else embedding_width,
        tied_embeddings=bool(fields.get("tie_word_embeddings", True)),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of an OPT config.json."""
    pre_norm = config.block == "pre_norm"
    written = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "word_embed_proj_dim": config.hidden_width,
        "do_layer_norm_before": pre_norm,
        "_remove_final_layer_norm": pre_norm and not config.final_norm,
        "activation_function": ACTIVATION_TO_HF[config.activation],
        "enable_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }
    return held(config, written, read_config)


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names; the layers' own final_layer_norm is the feed-forward's."""
    d, e, f = config.width, config.hidden_width, config.mlp_width
    per_head = (config.heads, config.head_dim)
    layer = "model.decoder.layers.{layer}."
    table = [
        plain("model.decoder.embed_tokens.weight", ("embed", "tokens"), (config.vocab_size, e)),
        plain(
            "model.decoder.embed_positions.weight", ("embed", "positions"), (config.max_positions + POSITION_OFFSET, d)
        ),
        *linear(layer + "self_attn.q_proj", "query", (d,), per_head, bias=config.attention_bias),
        *linear(layer + "self_attn.k_proj", "key", (d,), per_head, bias=config.attention_bias),
        *linear(layer + "self_attn.v_proj", "value", (d,), per_head, bias=config.attention_bias),
        *linear(layer + "self_attn.out_proj", "output", per_head, (d,), bias=config.attention_output_bias),
        *linear(layer + "fc1", "up", (d,), (f,), bias=config.mlp_bias),
        *linear(layer + "fc2", "down", (f,), (d,), bias=config.mlp_bias),
        *norms(config, {
            "attention_norm": layer + "self_attn_layer_norm", "mlp_norm": layer + "final_layer_norm",
        }),
        *head(config),
    ]  # fmt: skip
    if config.final_norm:
        table += norms(config, {"final_norm": "model.decoder.final_layer_norm"})
    if config.embedding_width is not None:
        table.append(transposed("model.decoder.project_in.weight", ("embed", "project_in"), (d, e), (e, d)))
        table.append(transposed("model.decoder.project_out.weight", ("project_out", "kernel"), (e, d), (d, e)))
    return tuple(table)


FAMILY = Family(
    model_type="opt",
    architectures=("OPTForCausalLM", "OPTModel"),
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="model.",
    classifier="OPTForSequenceClassification",
    ignored=("decoder.version",),
    covers=("OPT: 125M, 350M, 1.3B to 66B", "OPT-IML"),
    features=(
        "learned positions from row 2", "norms before or after", "projected embeddings", "with or without biases",
        "without the final norm", "tied or not",
    ),
)  # fmt: skip
