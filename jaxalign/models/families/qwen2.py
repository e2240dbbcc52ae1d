"""Qwen 2 and 2.5: Llama's shape with biases on queries, keys and values, and windows in the upper layers if any."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families._family import Family, optional_int, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import write_rope

KNOWN = shape.KNOWN | {"hidden_act", "use_sliding_window", "layer_types"}
ALLOWED: dict[str, tuple[Any, ...]] = {**shape.ALLOWED, "use_mrope": (None, False)}
# What they mean is in ModelConfig.windows; kept for the way back because files name a window that is switched off.
INERT = shape.INERT | {"sliding_window", "max_window_layers"}


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    return ModelConfig(
        family="qwen2",
        **shape.read_sizes(fields, path, positions=32768, kv_heads=32),
        windows=read_windows(fields, path),
        attention_bias=True,
        extra=read_extra(fields, KNOWN, ALLOWED, INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Qwen 2 config.json, readable by Transformers 4 and 5."""
    written = {
        **shape.write_sizes(config),
        **write_rope(config),
        **write_windows(config),
    }
    return held(config, written, read_config)


def read_windows(fields: Mapping[str, Any], path: str) -> tuple[int | None, ...]:
    """``sliding_window`` if ``use_sliding_window``, in layers from ``max_window_layers`` on or by ``layer_types``."""
    layers = optional_int(fields, "num_hidden_layers", 32, path)
    unlimited = "sliding_window" in fields and fields["sliding_window"] is None
    used = bool(fields.get("use_sliding_window")) and not unlimited
    window = optional_int(fields, "sliding_window", 4096, path) if used else None
    full = layers
    if window is not None:
        full = fields.get("max_window_layers", 28)
        if not isinstance(full, int) or isinstance(full, bool) or full < 0:
            raise InputError(f"{path}: field 'max_window_layers' must be a number of layers, is {full!r}")
    by_depth = [shape.FULL if layer < full else shape.SLIDING for layer in range(layers)]
    return shape.read_windows(shape.read_layer_types(fields, by_depth, path), window, path)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The window's fields; ``max_window_layers``, which alone older readers know, where one number can say it."""
    window = shape.one_window(config)
    types = shape.layer_types(config)
    written: dict[str, Any] = {"use_sliding_window": window is not None, "layer_types": types}
    if window is None:
        return written
    written["sliding_window"] = window
    full = types.index(shape.SLIDING)
    return written if shape.FULL in types[full:] else {**written, "max_window_layers": full}


FAMILY = Family(
    model_type="qwen2",
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    classifier="Qwen2ForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    covers=("Qwen 2", "Qwen 2.5", "DeepSeek-R1-Distill-Qwen"),
    features=("query, key, value biases", "sliding window by layer", "RoPE scaling: yarn", "tied or not"),
)
