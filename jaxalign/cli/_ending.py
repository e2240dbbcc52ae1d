"""How a command ends that does not end well: one line on stderr and an exit status; a bug keeps its traceback."""

import re
import sys
from collections.abc import Iterable
from types import TracebackType

from jaxalign.errors import InputError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "complain", "end", "out_of_memory", "said_once"]

# Exit statuses: 2 = the input is wrong, 1 = the run failed, 130 = interrupted.
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

# What to change where memory ran out, in this order, by the last part of the flag's name.
_SAVES_MEMORY = {
    "accumulation": "a larger {} (same result, smaller micro-batches)",
    "remat": "{} full",
    "max-length": "a smaller {}",
    "frozen-layers": "{} K",
    "dtype": "{} bfloat16",
    "mesh": "{} fsdp=N over more devices",
    "batch-size": "a smaller {}",
    "batch": "a smaller {}",
    "sampling-batch": "a smaller {}",
}
_OF_RECIPES = ("--accumulation", "--remat", "--max-length", "--frozen-layers", "--dtype", "--mesh", "--batch-size")


def end(program: str, error: BaseException, flags: Iterable[str] = _OF_RECIPES) -> int:
    """The exit status of a program that ``error`` ends, after its line; a bug is raised again.

    Args:
      program: its name, with which the line begins.
      error: what came.
      flags: those that the program has; where memory ran out, the line names the ones that save some.
    """
    if isinstance(error, InputError):
        return complain(program, str(error), BAD_INPUT)
    if isinstance(error, KeyboardInterrupt):
        return complain(program, "interrupted", INTERRUPTED)
    # A folder that cannot be written, a disk that is full.
    if isinstance(error, OSError) and error.filename is not None:
        return complain(program, f"{error.filename}: {error.strerror}", BAD_INPUT)
    # By name: jax is not imported for it. Before memory: a full disk may be called an exhausted resource too.
    known = any(kind.__name__ in ("TrainingError", "EndpointError") for kind in type(error).__mro__)
    if known or isinstance(error, FloatingPointError):
        return complain(program, str(error), FAILED)
    advice = None if isinstance(error, OSError) else out_of_memory(error, flags)
    if advice is None:
        raise error
    return complain(program, advice, FAILED)


def complain(program: str, message: str, status: int) -> int:
    """Say it in one line; returns ``status``."""
    one_line = " ".join(message.split())
    print(f"{program}: {one_line}", file=sys.stderr)
    return status


def out_of_memory(error: BaseException, flags: Iterable[str] = _OF_RECIPES) -> str | None:
    """What to change when the device's (or the host's) memory ran out; None for any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        where = "the host's memory"
    elif "RESOURCE_EXHAUSTED" in text or re.search(r"out of memory", text, re.IGNORECASE):
        where = "the device's memory"
    else:
        return None
    asked = re.search(r"allocat\w* (?:of )?([\d.]+ ?[KMGT]?i?B(?:ytes)?|\d+ bytes)", text, re.IGNORECASE)
    what = f" (the last allocation asked for {asked.group(1)})" if asked else ""
    by_name: dict[str, list[str]] = {}
    for flag in flags:
        by_name.setdefault(re.split(r"--|\.", flag)[-1], []).append(flag)
    ways = [way.format(" or ".join(by_name[name])) for name, way in _SAVES_MEMORY.items() if name in by_name]
    advice = f"; try, in this order, {', '.join(ways)}" if ways else ""
    return f"out of memory: {where} did not suffice{what}{advice}"


def said_once(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Python's own ``sys.excepthook``, but for what writes still under way raise into a closed loop after one of them
    has failed: the failure itself is said in its one line."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, traceback)
