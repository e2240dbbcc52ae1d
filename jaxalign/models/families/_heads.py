"""Families whose heads divide the width among themselves."""

from collections.abc import Mapping
from typing import Any

from jaxalign.errors import InputError
from jaxalign.models.families._family import require_int


def head_dim(fields: Mapping[str, Any], names: tuple[str, str], path: str) -> int:
    """width / heads, from the fields of these two names. Raises InputError where it is not a whole number."""
    width, heads = (require_int(fields, name, path) for name in names)
    if width % heads:
        raise InputError(f"{path}: {names[1]} = {heads} does not divide {names[0]} = {width}")
    return width // heads
