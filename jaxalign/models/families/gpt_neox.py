"""GPT-NeoX and Pythia: parallel (or sequential) residuals, rotary positions on part of each head, fused attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError
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
)
from jaxalign.models.families._heads import head_dim
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import read_rope, write_rope

KNOWN = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "layer_norm_eps", "use_parallel_residual", "attention_bias", "tie_word_embeddings",
    "rotary_pct", "rotary_emb_base", "rope_theta", "partial_rotary_factor", "rope_parameters", "rope_scaling",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {"quantization_config": (None,)}
# Dropouts: recipes run without.
INERT = frozenset({
    "attention_dropout", "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob", "classifier_dropout",
    "gradient_checkpointing",
})  # fmt: skip
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_fast", "relu": "relu"}
# This family's names in Transformers 4 -> everybody's.
ROPE_NAMES = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
DEFAULT_ROTARY_PCT = 0.25


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    heads = require_int(fields, "num_attention_heads", path)
    size = head_dim(fields, ("hidden_size", "num_attention_heads"), path)
    positions = optional_int(fields, "max_position_embeddings", 2048, path)
    rope = read_rope(_rope_fields(fields, path), path, positions=positions)
    if rope.rotated > 1:
        raise InputError(f"{path}: rotary_pct = {rope.rotated} is more than a whole head")
    rotated = int(size * rope.rotated)
    return ModelConfig(
        family="gpt_neox",
        vocab_size=require_int(fields, "vocab_size", path),
        width=require_int(fields, "hidden_size", path),
        layers=require_int(fields, "num_hidden_layers", path),
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        mlp_width=require_int(fields, "intermediate_size", path),
        max_positions=positions,
        norm="layer",
        norm_epsilon=fields.get("layer_norm_eps", 1e-5),
        block="parallel" if fields.get("use_parallel_residual", True) else "pre_norm",
        position="rotary",
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        rotary_dim=None if rotated == size else rotated,
        attention_bias=bool(fields.get("attention_bias", True)),
        attention_output_bias=bool(fields.get("attention_bias", True)),
        activation=read_activation(fields, "hidden_act", "gelu", path),
        gated_mlp=False,
        mlp_bias=True,
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def _rope_fields(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The fields with the rotary ones under everybody's names and this family's default of the rotated share."""
    places = {
        "": fields,
        "rope_parameters.": fields.get("rope_parameters"),
        "rope_scaling.": fields.get("rope_scaling"),
    }
    renamed = dict(fields)
    for old, new in ROPE_NAMES.items():
        stated = {
            f"{where}{new}": place[new]
            for where, place in places.items()
            if isinstance(place, Mapping) and place.get(new) is not None
        }
        value = fields.get(old)
        for name, other in stated.items():
            if value is not None and other != value:
                raise InputError(f"{path}: {old} = {value} contradicts {name} = {other}")
        if value is not None:
            renamed[new] = value
        elif not stated and new == "partial_rotary_factor":
            renamed[new] = DEFAULT_ROTARY_PCT
    return renamed


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a GPT-NeoX config.json, readable by Transformers 4 and 5."""
    share = _rotary_pct(config)
    rope = write_rope(config)
    theta = rope.pop("rope_theta")
    rope["rope_parameters"] |= {"partial_rotary_factor": share}
    written = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": ACTIVATION_TO_HF[config.activation],
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_epsilon,
        "rotary_pct": share,
        "rotary_emb_base": theta,
        **rope,
        "use_parallel_residual": config.block == "parallel",
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }
    return held(config, written, read_config)


def _rotary_pct(config: ModelConfig) -> float:
    """The share whose product with a head's size, rounded down as Transformers does, is the rotated dimensions."""
    rotated = config.head_dim if config.rotary_dim is None else config.rotary_dim
    share = rotated / config.head_dim
    return share if int(config.head_dim * share) == rotated else float(np.nextafter(share, 1))


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    d, f = (config.width,), (config.mlp_width,)
    per_head = (config.heads, config.head_dim)
    layer = "gpt_neox.layers.{layer}."
    table = [
        plain("gpt_neox.embed_in.weight", ("embed", "tokens"), (config.vocab_size, config.width)),
        _fused_kernel(config, layer + "attention.query_key_value.weight"),
        *linear(layer + "attention.dense", "output", per_head, d, bias=config.attention_output_bias),
        *linear(layer + "mlp.dense_h_to_4h", "up", d, f, bias=True),
        *linear(layer + "mlp.dense_4h_to_h", "down", f, d, bias=True),
        *norms(config, {
            "attention_norm": layer + "input_layernorm", "mlp_norm": layer + "post_attention_layernorm",
            "final_norm": "gpt_neox.final_layer_norm",
        }),
        *head(config, "embed_out"),
    ]  # fmt: skip
    if config.attention_bias:
        table.append(_fused_bias(config, layer + "attention.query_key_value.bias"))
    return tuple(table)


def _fused_kernel(config: ModelConfig, name: str) -> Weight:
    """One Linear whose rows are, head by head, the head's query, key and value."""
    d, h, k = config.width, config.heads, config.head_dim

    def split(array: np.ndarray) -> list[np.ndarray]:
        apart = array.T.reshape(d, h, 3, k)
        return [apart[:, :, part] for part in range(3)]

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(parts, axis=2).reshape(d, 3 * h * k).T

    return Weight(name, tuple((part, "kernel") for part in ("query", "key", "value")), (3 * h * k, d), split, join)


def _fused_bias(config: ModelConfig, name: str) -> Weight:
    h, k = config.heads, config.head_dim

    def split(array: np.ndarray) -> list[np.ndarray]:
        apart = array.reshape(h, 3, k)
        return [apart[:, part] for part in range(3)]

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(parts, axis=1).reshape(3 * h * k)

    return Weight(name, tuple((part, "bias") for part in ("query", "key", "value")), (3 * h * k,), split, join)


FAMILY = Family(
    model_type="gpt_neox",
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="gpt_neox.",
    classifier="GPTNeoXForSequenceClassification",
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    covers=("Pythia: 14M to 12B", "GPT-NeoX-20B", "Dolly 2"),
    features=(
        "parallel or sequential residuals", "part of each head rotated", "fused projections",
        "RoPE scaling: linear, llama3, yarn", "with or without attention biases", "tied or not",
    ),
)  # fmt: skip
