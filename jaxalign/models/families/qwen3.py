"""Qwen 3, the dense models: Llama's shape with a norm of every query and key head."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families import qwen2
from jaxalign.models.families._family import Family, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import write_rope

KNOWN = qwen2.KNOWN | {"attention_bias"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    bias = bool(fields.get("attention_bias", False))
    return ModelConfig(
        family="qwen3",
        **shape.read_sizes(fields, path, positions=32768, kv_heads=32, head_dim=128),
        windows=qwen2.read_windows(fields, path),
        qk_norm=True,
        attention_bias=bias,
        attention_output_bias=bias,
        extra=read_extra(fields, KNOWN, shape.ALLOWED, qwen2.INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Qwen 3 config.json, readable by Transformers 4 and 5."""
    written = {
        **shape.write_sizes(config),
        **write_rope(config),
        **qwen2.write_windows(config),
        "attention_bias": config.attention_bias,
    }
    return held(config, written, read_config)


FAMILY = Family(
    model_type="qwen3",
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    classifier="Qwen3ForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    covers=("Qwen 3 (dense): 0.6B to 32B",),
    features=("query and key norms", "head size apart from width", "sliding window by layer", "RoPE scaling: yarn"),
)
