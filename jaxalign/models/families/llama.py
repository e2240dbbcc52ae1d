"""Llama and the models published in its shape (Llama 2/3 without scaled RoPE, SmolLM2, TinyLlama ...)."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models.families._family import (
    Family,
    Weight,
    optional_int,
    plain,
    read_activation,
    read_extra,
    require_choices,
    require_int,
    reshaped,
    transposed,
)

KNOWN = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_parameters", "rope_scaling", "attention_bias", "mlp_bias", "tie_word_embeddings",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {
    "rope_interleaved": (None, False),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
}
# attention_dropout: training recipes run without dropout; pretraining_tp only slices the same products.
INERT = frozenset({"attention_dropout", "pretraining_tp", "is_llama_config"})
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    heads = require_int(fields, "num_attention_heads", path)
    width = require_int(fields, "hidden_size", path)
    return ModelConfig(
        family="llama",
        vocab_size=require_int(fields, "vocab_size", path),
        width=width,
        layers=require_int(fields, "num_hidden_layers", path),
        heads=heads,
        kv_heads=optional_int(fields, "num_key_value_heads", heads, path),
        head_dim=optional_int(fields, "head_dim", width // heads, path),
        mlp_width=require_int(fields, "intermediate_size", path),
        max_positions=optional_int(fields, "max_position_embeddings", 2048, path),
        norm="rms",
        norm_epsilon=fields.get("rms_norm_eps", 1e-6),
        position="rotary",
        rope_theta=_rope_theta(fields, path),
        activation=read_activation(fields, "hidden_act", "silu", path),
        gated_mlp=True,
        attention_bias=bool(fields.get("attention_bias", False)),
        mlp_bias=bool(fields.get("mlp_bias", False)),
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def _rope_theta(fields: Mapping[str, Any], path: str) -> float:
    """The base, at the top level (Transformers 4) or in ``rope_parameters`` (5); any scaling is refused."""
    theta = fields.get("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise InputError(f"{path}: field {name!r} must be an object, is {rope!r}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise InputError(f"{path}: {name}.rope_type = {kind!r} is not implemented (only unscaled RoPE is)")
        if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise InputError(
                f"{path}: {name}.partial_rotary_factor = {rope['partial_rotary_factor']} is not implemented"
            )
        unknown = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if unknown:
            raise InputError(f"{path}: {name}.{min(unknown)} is not implemented")
        inner = rope.get("rope_theta")
        if None not in (theta, inner) and theta != inner:
            raise InputError(f"{path}: rope_theta = {theta} contradicts {name}.rope_theta = {inner}")
        theta = inner if theta is None else theta
    return 10000.0 if theta is None else float(theta)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Llama config.json, readable by Transformers 4 and 5."""
    require_choices(config, "llama", {"norm": "rms", "position": "rotary", "gated_mlp": True})
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": ACTIVATION_TO_HF[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embeddings,
    }


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names; torch's Linear stores (out, in)."""
    v, d, f = config.vocab_size, config.width, config.mlp_width
    h, g, k = config.heads, config.kv_heads, config.head_dim
    layer = "model.layers.{layer}."
    table = [
        plain("model.embed_tokens.weight", ("embed", "tokens"), (v, d)),
        plain(layer + "input_layernorm.weight", ("attention_norm", "scale"), (d,)),
        plain(layer + "post_attention_layernorm.weight", ("mlp_norm", "scale"), (d,)),
        transposed(layer + "self_attn.o_proj.weight", ("output", "kernel"), (d, h * k), (h, k, d)),
        transposed(layer + "mlp.down_proj.weight", ("down", "kernel"), (d, f), (f, d)),
        plain("model.norm.weight", ("final_norm", "scale"), (d,)),
    ]
    for ours, theirs, n in (("query", "q", h), ("key", "k", g), ("value", "v", g)):
        name = f"{layer}self_attn.{theirs}_proj"
        table.append(transposed(f"{name}.weight", (ours, "kernel"), (n * k, d), (d, n, k)))
        if config.attention_bias:
            table.append(reshaped(f"{name}.bias", (ours, "bias"), (n * k,), (n, k)))
    for ours in ("gate", "up"):
        table.append(transposed(f"{layer}mlp.{ours}_proj.weight", (ours, "kernel"), (f, d), (d, f)))
        if config.mlp_bias:
            table.append(plain(f"{layer}mlp.{ours}_proj.bias", (ours, "bias"), (f,)))
    if config.attention_bias:
        table.append(plain(layer + "self_attn.o_proj.bias", ("output", "bias"), (d,)))
    if config.mlp_bias:
        table.append(plain(layer + "mlp.down_proj.bias", ("down", "bias"), (d,)))
    if not config.tied_embeddings:
        table.append(plain("lm_head.weight", ("unembed", "kernel"), (v, d)))
    return tuple(table)


FAMILY = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
)
