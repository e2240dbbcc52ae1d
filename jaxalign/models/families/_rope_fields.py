"""Rotary fields of config.json, in both spellings: ``rope_theta`` and ``rope_scaling`` (Transformers 4), and
``rope_parameters`` (Transformers 5). Both are written; where a file has both they must agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._rope import RopeScaling

SCALINGS = ("linear", "llama3", "yarn")
ANY_KIND = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """What the rotary fields say."""

    theta: float
    scaling: RopeScaling | None = None
    rotated: float = 1.0
    """The rotated share of a head, ``partial_rotary_factor``."""
    long_factors: tuple[float, ...] = ()
    """longrope: those beyond the original context, kept for the way back."""


def default_attention_factor(kind: str, factor: float, original: int) -> float:
    """What Transformers multiplies cos and sin by where the file does not say.

    yarn: 0.1 ln(factor) + 1 (arXiv 2309.00071, equation 22); longrope: sqrt(1 + ln(factor) / ln(original))
    (arXiv 2402.13753); 1 for the other kinds and where nothing is stretched.
    """
    if factor <= 1 or kind not in ("yarn", "longrope"):
        return 1.0
    return _yarn_factor(factor) if kind == "yarn" else math.sqrt(1 + math.log(factor) / math.log(original))


def read_rope(
    fields: Mapping[str, Any],
    path: str,
    *,
    kinds: tuple[str, ...] = SCALINGS,
    default_theta: float = 10000.0,
    positions: int,
    original: int | None = None,
    names: tuple[str, str] = ("rope_parameters", "rope_scaling"),
) -> Rope:
    """The rotary embedding a config.json describes.

    Args:
        fields: config.json, or those of its fields that say it for one kind of layer.
        path: for messages.
        kinds: scalings that the family has.
        default_theta: where no theta is given.
        positions: ``max_position_embeddings``.
        original: the context before stretching where it is a field of its own (Phi-3).
        names: of the two objects.

    Raises:
        InputError: a kind or key that is not implemented, or two statements that contradict each other.
    """
    stated = [
        _read_object(fields[name], name, path, kinds, positions, original)
        for name in names
        if fields.get(name) not in (None, {})
    ]
    if stated[1:] and stated[0] != stated[1]:
        raise InputError(f"{path}: {names[1]} contradicts {names[0]}; keep one of the two")
    scaling, long_factors = stated[0] if stated else (None, ())
    theta = _one("rope_theta", fields, names, path)
    rotated = _one("partial_rotary_factor", fields, names, path)
    return Rope(
        theta=float(default_theta if theta is None else theta),
        scaling=scaling,
        rotated=1.0 if rotated is None else float(rotated),
        long_factors=long_factors,
    )


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The rotary fields in both spellings; each reads as the same numbers in its version of Transformers."""
    inside = write_scaling(config.rope_scaling)
    written: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", **inside, "rope_theta": config.rope_theta},
    }
    return {**written, "rope_scaling": inside} if inside else written


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any]:
    """One object of the scaling's fields, without theta; empty where nothing is scaled.

    Raises:
        InputError: longrope, whose fields only Phi-3 has.
    """
    if scaling is None:
        return {}
    if scaling.kind not in SCALINGS:
        raise InputError(f"only a phi3 folder can hold ModelConfig.rope_scaling.kind = {scaling.kind!r}")
    written: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return written
    written["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        return {
            **written,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.attention_factor != default_attention_factor("yarn", scaling.factor, scaling.original_positions):
        written["attention_factor"] = scaling.attention_factor
    return written if scaling.truncate else {**written, "truncate": False}


def _read_object(
    value: Any, name: str, path: str, kinds: tuple[str, ...], positions: int, original: int | None
) -> tuple[RopeScaling | None, tuple[float, ...]]:
    """The scaling of one ``rope_parameters`` or ``rope_scaling`` and its long factors; the rest is ``_one``'s."""
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: field {name!r} must be an object, is {value!r}")
    kind = value.get("rope_type", value.get("type", "default"))
    if value.get("type", kind) != kind:
        raise InputError(f"{path}: {name}.type = {value['type']!r} contradicts {name}.rope_type = {kind!r}")
    if kind == "su" and "longrope" in kinds:  # its name in the first files
        kind = "longrope"
    if kind != "default" and kind not in kinds:
        raise InputError(
            f"{path}: {name}.rope_type = {kind!r} is not implemented here; known: {', '.join(('default', *kinds))}"
        )
    unknown = {key for key in value if value[key] is not None} - KEYS[kind] - ANY_KIND
    if unknown:
        raise InputError(f"{path}: {name}.{min(unknown)} is not implemented for rope_type = {kind!r}")
    if kind == "default":
        return None, ()

    def number(key: str, default: float | None = None) -> float:
        found = value.get(key)
        if found is None and default is not None:
            return default
        if not isinstance(found, int | float) or isinstance(found, bool) or found <= 0:
            raise InputError(f"{path}: {name}.{key} must be a positive number, is {found!r}")
        return float(found)

    if kind == "linear":
        return RopeScaling("linear", number("factor")), ()
    if kind == "llama3":
        return RopeScaling(
            "llama3", number("factor"), int(number("original_max_position_embeddings")),
            low_frequency_factor=number("low_freq_factor"), high_frequency_factor=number("high_freq_factor"),
        ), ()  # fmt: skip
    inner = value.get("original_max_position_embeddings")
    if None not in (original, inner) and original != inner:
        raise InputError(
            f"{path}: original_max_position_embeddings = {original} contradicts "
            f"{name}.original_max_position_embeddings = {inner}"
        )
    original = int(number("original_max_position_embeddings", positions if original is None else original))
    if kind == "longrope":
        factor = number("factor", positions / original)
        attention = number("attention_factor", default_attention_factor(kind, factor, original))
        short, long = (_factors(value.get(key), f"{name}.{key}", path) for key in ("short_factor", "long_factor"))
        scaling = RopeScaling("longrope", positions / original, original, attention_factor=attention, factors=short)
        return scaling, long
    factor = number("factor")
    default = default_attention_factor(kind, factor, original)
    if value.get("mscale") and value.get("mscale_all_dim"):
        default = _yarn_factor(factor, number("mscale")) / _yarn_factor(factor, number("mscale_all_dim"))
    truncate = value.get("truncate")
    return RopeScaling(
        "yarn", factor, original, beta_fast=number("beta_fast", 32.0), beta_slow=number("beta_slow", 1.0),
        truncate=True if truncate is None else bool(truncate), attention_factor=number("attention_factor", default),
    ), ()  # fmt: skip


def _yarn_factor(factor: float, scale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _factors(value: Any, name: str, path: str) -> tuple[float, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, int | float) and v > 0 for v in value):
        raise InputError(f"{path}: {name} must be a list of positive numbers")
    return tuple(float(v) for v in value)


def _one(key: str, fields: Mapping[str, Any], names: tuple[str, str], path: str) -> float | None:
    """A number that may stand at the top or in either object; all that do must agree."""
    found: dict[str, float] = {}
    for where, place in (("", fields), *((f"{name}.", fields.get(name)) for name in names)):
        value = place.get(key) if isinstance(place, Mapping) else None
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise InputError(f"{path}: {where}{key} must be a positive number, is {value!r}")
        for other, earlier in found.items():
            if earlier != value:
                raise InputError(f"{path}: {other} = {earlier} contradicts {where}{key} = {value}")
        found[where + key] = value
    return next(iter(found.values()), None)
