"""JSON values as hashable ones and back: what a config keeps of its folder's files."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class JsonObject:
    """A JSON object as a hashable value, whatever order its names stand in; ``thaw`` gives the dict back."""

    items: tuple[tuple[str, Any], ...]


def freeze(value: Any) -> Any:
    """A JSON value with tuples for its lists and ``JsonObject`` for its objects."""
    if isinstance(value, dict):
        return JsonObject(tuple((name, freeze(inner)) for name, inner in sorted(value.items())))
    if isinstance(value, list | tuple):
        return tuple(freeze(inner) for inner in value)
    return value


def thaw(value: Any) -> Any:
    """The inverse of ``freeze``."""
    if isinstance(value, JsonObject):
        return {name: thaw(inner) for name, inner in value.items}
    if isinstance(value, tuple):
        return [thaw(inner) for inner in value]
    return value
