"""Llama and the models published in its shape: Llama 2 and 3, SmolLM2, TinyLlama ..."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families._family import Family, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import write_rope

KNOWN = shape.KNOWN | {"hidden_act", "attention_bias", "mlp_bias"}
ALLOWED: dict[str, tuple[Any, ...]] = {
    **shape.ALLOWED, "rope_interleaved": (None, False), "sliding_window": (None,), "use_sliding_window": (None, False),
}  # fmt: skip
# pretraining_tp only slices the same products.
INERT = shape.INERT | {"pretraining_tp", "is_llama_config"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    bias = bool(fields.get("attention_bias", False))
    return ModelConfig(
        family="llama",
        **shape.read_sizes(fields, path, positions=2048),
        attention_bias=bias,
        attention_output_bias=bias,
        mlp_bias=bool(fields.get("mlp_bias", False)),
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Llama config.json, readable by Transformers 4 and 5."""
    written = {
        **shape.write_sizes(config),
        **write_rope(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }
    return held(config, written, read_config)


FAMILY = Family(
    model_type="llama",
    architectures=("LlamaForCausalLM", "LlamaModel"),
    classifier="LlamaForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    covers=("Llama 2", "Llama 3, 3.1, 3.2 (text), 3.3", "SmolLM, SmolLM2", "TinyLlama"),
    features=("grouped queries", "RoPE scaling: linear, llama3, yarn", "biases", "tied or not"),
)
