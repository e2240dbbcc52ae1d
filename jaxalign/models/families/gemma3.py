"""Gemma 3, text: Gemma 2 with query and key norms, five local layers to a global one and another wavelength in each."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models.families import _llama_like as shape
from jaxalign.models.families import gemma2
from jaxalign.models.families._family import SPECIAL_TOKENS, Family, Wrapper, optional_int, read_extra
from jaxalign.models.families._held import held
from jaxalign.models.families._rope_fields import Rope, read_rope, write_scaling

PATTERNS = ("sliding_window_pattern", "_sliding_window_pattern")  # names of one field in Transformers 4 and 5
KNOWN = gemma2.KNOWN | {"rope_local_base_freq", *PATTERNS}
# Transformers reads a cap of the scores and leaves it unused: no published model has one.
ALLOWED: dict[str, tuple[Any, ...]] = {**gemma2.ALLOWED, "attn_logit_softcapping": (None,)}
POSITIONS = 131072
# Of the model with a vision tower: how images enter a prompt.
WHOLE_INERT = shape.INERT | {
    "boi_token_index", "eoi_token_index", "image_token_index", "boi_token_id", "eoi_token_id", "image_token_id",
    "mm_tokens_per_image",
}  # fmt: skip


def read_config(fields: Mapping[str, Any], path: str) -> ModelConfig:
    """config.json -> ModelConfig; refuses what is not implemented."""
    rope, local = _read_ropes(fields, path)
    common = gemma2.read_common(fields, path, positions=POSITIONS, rope=rope)
    windows = shape.read_windows(_read_types(fields, common["layers"], path), gemma2.read_window(fields, path), path)
    return ModelConfig(
        family="gemma3_text",
        **common,
        windows=windows,
        qk_norm=True,
        local_rope_theta=local.theta,
        logit_soft_cap=gemma2.read_cap(fields, "final_logit_softcapping", None, path),
        extra=read_extra(fields, KNOWN - {"attn_logit_softcapping"}, ALLOWED, gemma2.INERT, path),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    """ModelConfig -> the fields of a Gemma 3 config.json, readable by Transformers 4 and 5."""
    local = config.local_rope_theta
    if local is None and config.rope_scaling is not None:
        raise InputError("a gemma3_text folder with ModelConfig.rope_scaling needs ModelConfig.local_rope_theta")
    local = config.rope_theta if local is None else local
    inside = write_scaling(config.rope_scaling)
    common = gemma2.write_common(config)
    types = common["layer_types"]
    period = types.index(shape.FULL) + 1 if shape.FULL in types else config.layers + 1
    if types == gemma2.alternating(config.layers, period):
        common["sliding_window_pattern"] = period
    written = {
        **common,
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": inside or None,
        "rope_parameters": {
            shape.FULL: {"rope_type": "default", **inside, "rope_theta": config.rope_theta},
            shape.SLIDING: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
    }
    return held(config, written, read_config)


def read_text_fields(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The language model's fields of a model with a vision tower (Gemma 3 4B, 12B, 27B), whose config.json leaves out
    what is Transformers' default."""
    text = fields.get("text_config")
    if not isinstance(text, Mapping):
        raise InputError(f"{path}: field 'text_config' must be an object, is {text!r}")
    read_extra(fields, {"text_config", "vision_config", "tie_word_embeddings"}, shape.ALLOWED, WHOLE_INERT, path)
    defaults = {"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    from_whole = {
        name: fields[name] for name in ("tie_word_embeddings", *SPECIAL_TOKENS) if fields.get(name) is not None
    }
    return {**defaults, "num_attention_heads": 8, **text, **from_whole}


def _read_types(fields: Mapping[str, Any], layers: int, path: str) -> list[str]:
    """``layer_types``, or every n-th layer global by ``sliding_window_pattern`` (6)."""
    given = next((name for name in PATTERNS if fields.get(name) is not None), None)
    by_pattern = gemma2.alternating(layers, optional_int(fields, given or PATTERNS[0], 6, path))
    types = shape.read_layer_types(fields, by_pattern, path)
    # Transformers 5 saves its default, 6, beside any layer_types: only the public name is somebody's word.
    if given == PATTERNS[0] and types != by_pattern:
        raise InputError(f"{path}: layer_types contradicts {given} = {fields[given]}; remove one of the two")
    return types


def _read_ropes(fields: Mapping[str, Any], path: str) -> tuple[Rope, Rope]:
    """Of global layers, which alone are stretched, and of local ones."""
    parameters = fields.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping) or set(parameters) - {shape.FULL, shape.SLIDING}:
        raise InputError(
            f"{path}: rope_parameters must hold one object for {shape.FULL!r} and one for {shape.SLIDING!r}"
        )
    positions = optional_int(fields, "max_position_embeddings", POSITIONS, path)

    def read(kind: str, old: Mapping[str, Any], default: float, kinds: tuple[str, ...]) -> Rope:
        name = f"rope_parameters.{kind}"
        rope = read_rope(
            {**old, name: parameters.get(kind)}, path,
            kinds=kinds, default_theta=default, positions=positions, names=(name, "rope_scaling"),
        )  # fmt: skip
        if rope.rotated != 1:
            raise InputError(f"{path}: partial_rotary_factor = {rope.rotated} is not implemented for this family")
        return rope

    old = {name: fields.get(name) for name in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    return (
        read(shape.FULL, old, 1_000_000.0, ("linear", "llama3", "yarn")),
        read(shape.SLIDING, {"rope_theta": fields.get("rope_local_base_freq")}, 10_000.0, ()),
    )


FAMILY = Family(
    model_type="gemma3_text",
    architectures=("Gemma3ForCausalLM", "Gemma3TextModel"),
    classifier="Gemma3TextForSequenceClassification",
    read_config=read_config,
    write_config=write_config,
    weights=shape.weights,
    base_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    wrapper=Wrapper(
        model_type="gemma3",
        architectures=("Gemma3ForConditionalGeneration",),
        read_fields=read_text_fields,
        prefixes=(
            {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
            {"model.": "model.language_model."},
        ),
        others=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
    covers=("Gemma 3: 270M, 1B", "the language model of Gemma 3: 4B, 12B, 27B"),
    features=(
        "query and key norms", "local and global layers by pattern", "wavelengths by layer",
        "RoPE scaling of global layers", "scaled embedding", "query scale", "norms before and after, 1 + scale",
    ),
)  # fmt: skip
