"""Phi-3, 3.5 and 4: Llama's shape with fused projections, a part of each head rotated, and LongRoPE."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families._family import Family, Weight, linear, optional_int, read_extra, require_int
from jaxalign.models.families._heads import head_dim
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import default_attention_factor, read_rope

KNOWN = shape.KNOWN | {"hidden_act", "sliding_window", "original_max_position_embeddings"}
ALLOWED: dict[str, tuple[Any, ...]] = {
    **shape.ALLOWED,
    # Fields of Phi-4-mini, all at the values that change nothing.
    "full_attn_mod": (1,), "interpolate_factor": (1,),
}  # fmt: skip
INERT = shape.INERT | {"resid_pdrop", "embd_pdrop"}
CONTEXT = 4096


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented.

    With LongRoPE ``max_positions`` is the original context, up to which the short factors hold; the long factors and
    the published length are kept in ``extra`` for the way back.
    """
    size = head_dim(fields, ("hidden_size", "num_attention_heads"), path)
    if fields.get("head_dim") not in (None, size):
        raise InputError(f"{path}: head_dim = {fields['head_dim']} is not implemented; Phi-3's is {size} here")
    positions = optional_int(fields, "max_position_embeddings", CONTEXT, path)
    inside = any(
        isinstance(fields.get(name), Mapping) and "original_max_position_embeddings" in fields[name]
        for name in ("rope_parameters", "rope_scaling")
    )
    stated = fields.get("original_max_position_embeddings") is not None
    original = optional_int(fields, "original_max_position_embeddings", CONTEXT, path) if stated or not inside else None
    rope = read_rope(fields, path, kinds=("longrope",), positions=positions, original=original)
    rotated = int(size * rope.rotated)
    sizes = shape.read_sizes(fields, path, positions=CONTEXT, epsilon=1e-5, rope=rope)
    extra = dict(read_extra(fields, KNOWN, ALLOWED, INERT, path))
    if rope.scaling is not None:
        for name, factors in (("short_factor", rope.scaling.factors), ("long_factor", rope.long_factors)):
            if len(factors) != rotated // 2:
                raise InputError(
                    f"{path}: {name} has {len(factors)} numbers, the rotated dimensions need {rotated // 2}"
                )
        extra |= {"max_position_embeddings": positions, "rope_scaling": ("long_factor", rope.long_factors)}
        sizes["max_positions"] = min(positions, rope.scaling.original_positions)
    elif stated:
        extra["original_max_position_embeddings"] = original
    return ModelConfig(
        family="phi3",
        **sizes,
        rotary_dim=None if rotated == size else rotated,
        windows=(None if fields.get("sliding_window") is None else require_int(fields, "sliding_window", path),),
        extra=tuple(sorted(extra.items())),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Phi-3 config.json, readable by Transformers 4 and 5."""
    written = {
        **shape.write_sizes(config),
        **_write_rope(config),
        "sliding_window": config.layer_windows[0],
    }
    return held(config, written, read_config)


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    """``rope_scaling`` has exactly the three keys that Transformers 4 asks for, unless that would lose a number."""
    share = 1.0 if config.rotary_dim is None else config.rotary_dim / config.head_dim
    if int(config.head_dim * share) != (config.rotary_dim or config.head_dim):  # rounded down to one less
        share = (config.rotary_dim + 0.5) / config.head_dim  # type: ignore[operator]
    same: dict[str, Any] = {"rope_theta": config.rope_theta}
    if share != 1:
        same["partial_rotary_factor"] = share
    scaling = config.rope_scaling
    if scaling is None:
        return {**same, "rope_parameters": {"rope_type": "default", **same}}
    extra = dict(config.extra)
    if scaling.kind != "longrope" or "rope_scaling" not in extra or "max_position_embeddings" not in extra:
        raise InputError(
            f"a phi3 folder cannot hold ModelConfig.rope_scaling.kind = {scaling.kind!r} unless it is longrope, read "
            "from a Phi-3 folder with its long factors"
        )
    positions, original = extra["max_position_embeddings"], scaling.original_positions
    inside: dict[str, Any] = {"short_factor": list(scaling.factors), "long_factor": list(extra["rope_scaling"][1])}
    if scaling.attention_factor != default_attention_factor("longrope", positions / original, original):
        inside["attention_factor"] = scaling.attention_factor
    return {
        **same,
        "max_position_embeddings": positions,
        "original_max_position_embeddings": original,
        "rope_scaling": {"type": "longrope", **inside},
        "rope_parameters": {
            "rope_type": "longrope", **inside, **same, "original_max_position_embeddings": original,
        },
    }  # fmt: skip


def weights(config: ModelConfig) -> tuple[Weight, ...]:
    """The table of weight names; query, key and value are one tensor, gate and up another."""
    d, f, h, g, k = config.width, config.mlp_width, config.heads, config.kv_heads, config.head_dim
    return (
        *shape.other_rows(config),
        _fused(shape.LAYER + "self_attn.qkv_proj.weight", d, {"query": (h, k), "key": (g, k), "value": (g, k)}),
        *linear(shape.LAYER + "self_attn.o_proj", "output", (h, k), (d,), bias=False),
        _fused(shape.LAYER + "mlp.gate_up_proj.weight", d, {"gate": (f,), "up": (f,)}),
        *linear(shape.LAYER + "mlp.down_proj", "down", (f,), (d,), bias=False),
    )


def _fused(name: str, width: int, parts: Mapping[str, tuple[int, ...]]) -> Weight:
    """A torch Linear (out, in) whose rows are several kernels (in, out) one after the other."""
    sizes = [int(np.prod(outputs)) for outputs in parts.values()]
    ends = np.cumsum(sizes)

    def split(array: np.ndarray) -> list[np.ndarray]:
        rows = np.split(array, ends[:-1])
        return [part.T.reshape(width, *outputs) for part, outputs in zip(rows, parts.values(), strict=True)]

    def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([array.reshape(width, -1).T for array in arrays])

    return Weight(name, tuple((part, "kernel") for part in parts), (int(ends[-1]), width), split, join)


FAMILY = Family(
    model_type="phi3",
    architectures=("Phi3ForCausalLM", "Phi3Model"),
    classifier="Phi3ForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    merged_code=frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}),
    covers=("Phi-3 mini, medium", "Phi-3.5 mini", "Phi-4, Phi-4-mini"),
    features=(
        "fused projections", "sliding window", "LongRoPE, up to the original context", "part of each head rotated",
        "grouped queries",
    ),
)  # fmt: skip
