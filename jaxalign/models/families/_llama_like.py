"""What the families of Llama's shape share: names of sizes in config.json, windows by layer, rows of weights."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models.families._family import (
    Weight,
    head,
    linear,
    norms,
    optional_int,
    plain,
    read_activation,
    require_int,
)
from jaxalign.models.families._heads import head_dim as width_over_heads
from jaxalign.models.families._rope_fields import Rope, read_rope

KNOWN = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
    "rope_scaling", "partial_rotary_factor", "tie_word_embeddings",
}  # fmt: skip
ALLOWED: dict[str, tuple[Any, ...]] = {"quantization_config": (None,)}
# attention_dropout: training recipes run without dropout; cache_implementation: how Transformers decodes.
INERT = frozenset({"attention_dropout", "cache_implementation"})
ACTIVATION_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}

LAYER = "model.layers.{layer}."
FULL, SLIDING = "full_attention", "sliding_attention"


def read_sizes(
    fields: Mapping[str, Any],
    path: str,
    *,
    positions: int,
    epsilon: float = 1e-6,
    tied: bool = False,
    head_dim: int | None = None,
    kv_heads: int | None = None,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    rope: Rope | None = None,
) -> dict[str, Any]:
    """The arguments of ModelConfig that all these families spell alike.

    Args:
        fields: config.json.
        path: for messages.
        positions, epsilon, tied, head_dim, kv_heads: Transformers' defaults of this family where a field is absent;
            without one, width / heads and heads.
        activation: the field's name and its default.
        rope: where the family reads it itself.
    """
    heads = require_int(fields, "num_attention_heads", path)
    width = require_int(fields, "hidden_size", path)
    positions = optional_int(fields, "max_position_embeddings", positions, path)
    if rope is None:
        rope = read_rope(fields, path, positions=positions)
        if rope.rotated != 1:
            raise InputError(f"{path}: partial_rotary_factor = {rope.rotated} is not implemented for this family")
    if "num_key_value_heads" in fields or kv_heads is None:  # null means one a query head, absent the default
        kv_heads = optional_int(fields, "num_key_value_heads", heads, path)
    if fields.get("head_dim") is not None:
        head_dim = require_int(fields, "head_dim", path)
    elif head_dim is None:
        head_dim = width_over_heads(fields, ("hidden_size", "num_attention_heads"), path)
    return {
        "vocab_size": require_int(fields, "vocab_size", path),
        "width": width,
        "layers": require_int(fields, "num_hidden_layers", path),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_width": require_int(fields, "intermediate_size", path),
        "max_positions": positions,
        "norm": "rms",
        "norm_epsilon": read_number(fields, "rms_norm_eps", epsilon, path),
        "position": "rotary",
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "activation": read_activation(fields, *activation, path),
        "gated_mlp": True,
        "tied_embeddings": bool(fields.get("tie_word_embeddings", tied)),
    }


def write_sizes(config: ModelConfig, *, activation: str = "hidden_act") -> dict[str, Any]:
    """The fields of config.json that all these families spell alike, readable by Transformers 4 and 5."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        activation: ACTIVATION_TO_HF[config.activation],
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_embeddings,
    }


def read_number(fields: Mapping[str, Any], name: str, default: float | None, path: str) -> float:
    """A positive number; the default where the field is absent."""
    value = fields.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise InputError(f"{path}: {name} must be a positive number, is {value!r}")
    return value


def read_layer_types(fields: Mapping[str, Any], default: list[str], path: str) -> list[str]:
    """``layer_types``, or what the family's older fields say; where both are given they must agree."""
    given = fields.get("layer_types")
    if given is None:
        return default
    if not isinstance(given, list) or len(given) != len(default) or not set(given) <= {FULL, SLIDING}:
        raise InputError(f"{path}: layer_types must be a list of {len(default)} times {FULL!r} or {SLIDING!r}")
    return given


def read_windows(layer_types: list[str], window: int | None, path: str) -> tuple[int | None, ...]:
    """``ModelConfig.windows``, the shortest period of the layers' windows."""
    if window is None and SLIDING in layer_types:
        raise InputError(f"{path}: layer_types has {SLIDING!r}, but sliding_window gives no window")
    windows = tuple(window if kind == SLIDING else None for kind in layer_types)
    period = next(n for n in range(1, len(windows) + 1) if all(w == windows[i % n] for i, w in enumerate(windows)))
    return windows[:period]


def layer_types(config: ModelConfig) -> list[str]:
    """``layer_types`` of config.json."""
    return [FULL if window is None else SLIDING for window in config.layer_windows]


def one_window(config: ModelConfig) -> int | None:
    """``sliding_window`` of config.json: the first window there is."""
    return next((window for window in config.layer_windows if window is not None), None)


def attention_rows(config: ModelConfig) -> list[Weight]:
    """Query, key, value and output projections, one tensor each."""
    d, h, g, k = config.width, config.heads, config.kv_heads, config.head_dim
    name, bias = LAYER + "self_attn.", config.attention_bias
    return [
        *linear(name + "q_proj", "query", (d,), (h, k), bias=bias),
        *linear(name + "k_proj", "key", (d,), (g, k), bias=bias),
        *linear(name + "v_proj", "value", (d,), (g, k), bias=bias),
        *linear(name + "o_proj", "output", (h, k), (d,), bias=config.attention_output_bias),
    ]


def mlp_rows(config: ModelConfig) -> list[Weight]:
    """The gated feed-forward layer, one tensor each."""
    d, f, bias = (config.width,), (config.mlp_width,), config.mlp_bias
    return [
        *linear(LAYER + "mlp.gate_proj", "gate", d, f, bias=bias),
        *linear(LAYER + "mlp.up_proj", "up", d, f, bias=bias),
        *linear(LAYER + "mlp.down_proj", "down", f, d, bias=bias),
    ]


def other_rows(config: ModelConfig) -> list[Weight]:
    """Embedding, norms and the head."""
    names = {
        "final_norm": "model.norm",
        "attention_norm": LAYER + "input_layernorm",
        "mlp_norm": LAYER + "post_attention_layernorm",
    }
    if config.block == "sandwich_norm":
        names |= {
            "attention_post_norm": LAYER + "post_attention_layernorm",
            "mlp_norm": LAYER + "pre_feedforward_layernorm",
            "mlp_post_norm": LAYER + "post_feedforward_layernorm",
        }
    if config.qk_norm:
        names |= {"query_norm": LAYER + "self_attn.q_norm", "key_norm": LAYER + "self_attn.k_norm"}
    embedding = plain("model.embed_tokens.weight", ("embed", "tokens"), (config.vocab_size, config.width))
    return [embedding, *norms(config, names), *head(config)]


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names."""
    return (*other_rows(config), *attention_rows(config), *mlp_rows(config))
