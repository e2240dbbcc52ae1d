"""Parameters that change hands: a run that starts from them need not hold them beside what it makes of them."""

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Handover", "taken"]

T = TypeVar("T")


class Handover(Generic[T]):
    """``Handover(value)()`` is the value, once; from then on only who took it holds it."""

    def __init__(self, value: T) -> None:
        self._held = [value]

    def __call__(self) -> T:
        return self._held.pop()


def taken(given: T | Callable[[], T]) -> T:
    """What was given, or what the function that was given returns."""
    return given() if callable(given) else given
