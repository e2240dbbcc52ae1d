"""Mistral 7B and its kin: Llama's shape, every layer with the same sliding window or with none."""

from collections.abc import Mapping
from typing import Any

from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families._family import Family, optional_int, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import write_rope

KNOWN = shape.KNOWN | {"hidden_act", "sliding_window"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented. Null means no window, a missing field 4096."""
    unlimited = "sliding_window" in fields and fields["sliding_window"] is None
    return ModelConfig(
        family="mistral",
        **shape.read_sizes(fields, path, positions=131072, kv_heads=8),
        windows=(None if unlimited else optional_int(fields, "sliding_window", 4096, path),),
        extra=read_extra(fields, KNOWN, shape.ALLOWED, shape.INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Mistral config.json, readable by Transformers 4 and 5."""
    written = {
        **shape.write_sizes(config),
        **write_rope(config),
        "sliding_window": config.layer_windows[0],
    }
    return held(config, written, read_config)


FAMILY = Family(
    model_type="mistral",
    architectures=("MistralForCausalLM", "MistralModel"),
    classifier="MistralForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    covers=("Mistral 7B v0.1, v0.2, v0.3", "Mistral Nemo", "Zephyr"),
    features=("sliding window", "grouped queries", "head size apart from width"),
)
