"""Gemma 2: norms on both sides of every sub-layer, capped scores and logits, every other layer with a window."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families._family import Family, optional_int, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import Rope, write_rope

KNOWN = shape.KNOWN | {
    "hidden_activation", "attention_bias", "query_pre_attn_scalar", "sliding_window", "layer_types",
    "final_logit_softcapping", "attn_logit_softcapping",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {**shape.ALLOWED, "use_bidirectional_attention": (None, False)}
# hidden_act: files name it besides hidden_activation, which alone is read by Transformers.
INERT = shape.INERT | {"hidden_act"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    common = read_common(fields, path, positions=8192)
    types = shape.read_layer_types(fields, alternating(common["layers"], 2), path)
    return ModelConfig(
        family="gemma2",
        **common,
        windows=shape.read_windows(types, read_window(fields, path), path),
        attention_soft_cap=read_cap(fields, "attn_logit_softcapping", 50.0, path),
        logit_soft_cap=read_cap(fields, "final_logit_softcapping", 30.0, path),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Gemma 2 config.json, readable by Transformers 4 and 5."""
    written = {
        **write_common(config),
        **write_rope(config),
        "attn_logit_softcapping": config.attention_soft_cap,
    }
    return held(config, written, read_config)


def read_common(fields: Mapping[str, Any], path: str, *, positions: int, rope: Rope | None = None) -> dict[str, Any]:
    """The arguments of ModelConfig that Gemma 2 and 3 share."""
    bias = bool(fields.get("attention_bias", False))
    sizes = shape.read_sizes(
        fields, path, positions=positions, tied=True, head_dim=256, kv_heads=4, rope=rope,
        activation=("hidden_activation", "gelu_pytorch_tanh"),
    )  # fmt: skip
    return {
        **sizes,
        "block": "sandwich_norm",
        "norm_unit_offset": True,
        "embedding_scale": sizes["width"] ** 0.5,
        "attention_scale": shape.read_number(fields, "query_pre_attn_scalar", 256, path) ** -0.5,
        "attention_bias": bias,
        "attention_output_bias": bias,
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 share."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return {
        **shape.write_sizes(config, activation="hidden_activation"),
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": round(scale**-2),  # Transformers takes whole numbers only
        "sliding_window": shape.one_window(config),
        "layer_types": shape.layer_types(config),
        "final_logit_softcapping": config.logit_soft_cap,
    }


def alternating(layers: int, period: int) -> list[str]:
    """The last layer of every period attends to everything, the others through a window."""
    return [shape.SLIDING if (layer + 1) % period else shape.FULL for layer in range(layers)]


def read_window(fields: Mapping[str, Any], path: str) -> int | None:
    """``sliding_window``; null means none, a missing field 4096."""
    unlimited = "sliding_window" in fields and fields["sliding_window"] is None
    return None if unlimited else optional_int(fields, "sliding_window", 4096, path)


def read_cap(fields: Mapping[str, Any], name: str, default: float | None, path: str) -> float | None:
    """A soft-cap; null means none."""
    return None if fields.get(name, default) is None else shape.read_number(fields, name, default, path)


FAMILY = Family(
    model_type="gemma2",
    architectures=("Gemma2ForCausalLM", "Gemma2Model"),
    classifier="Gemma2ForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    covers=("Gemma 2: 2B, 9B, 27B",),
    features=(
        "soft-caps of scores and logits", "alternating sliding windows", "scaled embedding", "query scale",
        "norms before and after, 1 + scale",
    ),
)  # fmt: skip
