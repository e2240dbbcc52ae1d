"""config.json and generation_config.json: to a ``ModelConfig`` and back."""

import json
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig
from jaxalign.models._json import freeze, thaw
from jaxalign.models._refusals import adapter_not_model, quantised, remote_code
from jaxalign.models.families import FAMILIES, WRAPPED, Family
from jaxalign.models.families._family import SPECIAL_TOKENS

GENERATION = "generation_config.json"
"""Also the name in ``ModelConfig.extra`` under which the file is kept as it was."""


def read_fields(folder: Path) -> dict[str, Any]:
    """config.json of a model without code of its own and without quantised weights."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(adapter_not_model(folder))
        raise InputError(f"{folder}: no config.json: not a Hugging Face model folder")
    fields = _read_object(path)
    if "auto_map" in fields and not _is_merged(fields.pop("auto_map"), fields.get("model_type")):
        raise InputError(remote_code(path))
    if fields.get("quantization_config") is not None:
        method = fields["quantization_config"]
        named = method.get("quant_method") if isinstance(method, dict) else None
        raise InputError(quantised(path, str(named or "such")))
    return fields


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and config of a folder. Raises InputError for what is not implemented, naming file and field."""
    family, config = of_fields(read_fields(folder), folder / "config.json")
    if (folder / GENERATION).is_file():
        generation, extra = _read_object(folder / GENERATION), dict(config.extra)
        if generation != _derived_generation({name: thaw(extra.get(name)) for name in SPECIAL_TOKENS}):
            config = config.replace(extra=(*config.extra, (GENERATION, freeze(generation))))
    return family, config


def of_fields(fields: dict[str, Any], path: Path) -> tuple[Family, ModelConfig]:
    """The family and config that the fields of a config.json describe; ``path`` is for messages."""
    model_type = fields.get("model_type")
    if model_type not in FAMILIES and model_type not in WRAPPED:
        raise InputError(f"{path}: model_type = {model_type!r} is not implemented; known: {', '.join(FAMILIES)}")
    family = FAMILIES.get(str(model_type)) or WRAPPED[model_type]
    known = family.architectures if family.classifier is None else (*family.architectures, family.classifier)
    named = fields.get("architectures") or ()
    if family.wrapper is not None and model_type == family.wrapper.model_type:
        known, fields = family.wrapper.architectures, family.wrapper.read_fields(fields, str(path))
    for architecture in named:
        if architecture not in known:
            raise InputError(
                f"{path}: architecture {architecture!r} is not one jaxalign knows; known for {model_type}: "
                f"{', '.join(known)}"
            )
    config = family.read_config(fields, str(path))
    if family.classifier in named:
        config = config.replace(labels=_count_labels(fields, path))
    return family, config


def _derived_generation(special: dict[str, Any]) -> dict[str, Any]:
    """generation_config.json of a model that came without one."""
    return {"_from_model_config": True, **special}


def family_of(config: ModelConfig) -> Family:
    """The family that writes this config. Raises InputError where none does."""
    if config.family not in FAMILIES:
        raise InputError(f"ModelConfig.family = {config.family!r} is unknown; known: {', '.join(FAMILIES)}")
    family = FAMILIES[config.family]
    if config.labels and family.classifier is None:
        raise InputError(f"a {config.family} folder cannot hold ModelConfig.labels = {config.labels}: no classifier")
    return family


def write_files(family: Family, config: ModelConfig, tokenizer: Any, dtype: str) -> dict[str, dict[str, Any]]:
    """The JSON files of a model: name -> content.

    Args:
        family, config: the model.
        tokenizer: its special tokens fill those the config leaves out; may be None.
        dtype: of the weights.

    Raises:
        InputError: the family cannot express the config.
    """
    extra = {name: thaw(value) for name, value in config.extra}
    generation = extra.pop(GENERATION, None)
    special = {}
    for name in SPECIAL_TOKENS:
        kept = extra.get(name)
        special[name] = getattr(tokenizer, name, None) if kept is None else kept
    if config.labels:
        architecture = family.classifier
        extra.pop("num_labels", None)  # the label names say it
        if len(extra.get("id2label") or ()) != config.labels:
            extra["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.labels)}
            extra["label2id"] = {name: int(index) for index, name in extra["id2label"].items()}
    else:
        architecture = family.architectures[0]
    fields = {
        **extra, **family.write_config(config), **special,
        "architectures": [architecture], "model_type": family.model_type, "dtype": dtype,
    }  # fmt: skip
    return {
        "config.json": fields,
        GENERATION: _derived_generation(special) if generation is None else generation,
    }


def _is_merged(code: Any, model_type: Any) -> bool:
    """Whether transformers has the code that came with the model, and so does without it."""
    if model_type not in FAMILIES or not isinstance(code, dict):
        return False
    classes = {str(value) for name, value in code.items() if name != "AutoTokenizer"}
    return classes <= FAMILIES[model_type].merged_code


def _count_labels(fields: dict[str, Any], path: Path) -> int:
    """Two where the file does not say: transformers leaves its default out."""
    names = fields.get("id2label")
    if names is not None and (not isinstance(names, dict) or not names):
        raise InputError(f"{path}: field 'id2label' must be an object of label names, is {names!r}")
    count = fields.get("num_labels", 2 if names is None else len(names))
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"{path}: field 'num_labels' must be a positive integer, is {count!r}")
    if names is not None and len(names) != count:
        raise InputError(f"{path}: num_labels = {count} contradicts the {len(names)} names of id2label")
    return count


def _read_object(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: must be a JSON object")
    return fields
