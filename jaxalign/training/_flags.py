"""A run's config as its flags: what two configs differ in, said as one gives it."""

import json
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError

MAY_CHANGE = ("max_steps", "save_every", "mesh", "output_dir")
"""Config entries that a resumed run may change: they do not change what an update computes (the mesh, only by
rounding)."""


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two nested configs differ in: ``{"optimizer.learning_rate": (1e-3, 2e-3)}``, None where one lacks it.

    Flags first: other data is mostly the consequence of another flag, which is then the one to name.
    """
    flat, other_flat = _flatten(one), _flatten(other)
    names = sorted(flat.keys() | other_flat.keys(), key=lambda name: (" " in name, name))
    found = {name: (flat.get(name), other_flat.get(name)) for name in names}
    return {name: (value, other_value) for name, (value, other_value) in found.items() if value != other_value}


def as_flag(name: str) -> str:
    """The flag of an entry; a name with a space in it is no flag but what a run was given ("tokenised data")."""
    return name if " " in name else "--" + name.split(".")[-1].replace("_", "-")


def check_config(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    may_change: tuple[str, ...] = MAY_CHANGE,
    where: str = "the run",
) -> None:
    """Refuse to go on with a run under another config.

    Args:
        saved: the config the run was started with, nested JSON values.
        current: the config now.
        may_change: names of entries that may differ.
        where: the run's folder, for the message.

    Raises:
        InputError: naming the first entry that differs, as a flag or as what the run was given.
    """
    for name, (before, now) in differences(saved, current).items():
        if name in may_change or name.split(".")[-1] in may_change:
            continue
        if " " in name:
            raise InputError(
                f"{where} was started with other {name}: go on with the same, or give another --output-dir"
            )
        raise InputError(
            f"{as_flag(name)} is {json.dumps(now)}, but {where} was started with {json.dumps(before)}: "
            "go on with the same value, or give another --output-dir"
        )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
