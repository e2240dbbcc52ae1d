"""Whether a folder of a family can hold a config: what is written must read as the same model."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models._config import ModelConfig

# What a config.json of the language model does not say: how a run uses it, its head, ids of special tokens.
NOT_HELD = frozenset({"labels", "stacks", "remat", "compute_dtype", "attention", "lora", "extra"})


def held(
    config: ModelConfig, written: dict[str, Any], read_config: Callable[[Mapping[str, Any], str], ModelConfig]
) -> dict[str, Any]:
    """``written`` as it is, once it is sure that the family reads it as ``config``.

    Raises:
        InputError: it reads as another model; the message names the first field that a folder cannot hold.
    """
    again = read_config(written, "config.json")
    for field in fields(ModelConfig):
        name = field.name
        unused = name == "rope_theta" and config.position == "learned"
        if name not in NOT_HELD and not unused and _value(again, name) != _value(config, name):
            raise InputError(
                f"a {again.family} folder cannot hold ModelConfig.{name} = {getattr(config, name)!r}: "
                f"it would read as {getattr(again, name)!r}"
            )
    return written


def _value(config: ModelConfig, name: str) -> Any:
    """A field's value, one of several spellings of the same model."""
    value = getattr(config, name)
    if name == "rotary_dim" and value is None:
        return config.head_dim
    return config.layer_windows if name == "windows" else value
