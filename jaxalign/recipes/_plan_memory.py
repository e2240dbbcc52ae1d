"""What a compiled step holds at its peak beside its arguments, from the live ranges that the compiler writes down.

For the machine that compiles, the compiler's own allocation is the answer. For another one it is not: a CPU's schedule
copies donated arguments early and gathers parameters at the start, because memory is not what it minds. There the peak
is that of the live ranges with three rules applied:

- a donated argument is updated in place;
- what is made of arguments and constants alone (a gathered matrix, zeros), or in a loop of what it only reads, is made
  where it is first used;
- a constant that a loop only reads is part of the loop's fusions.
"""

import math
import re
from dataclasses import dataclass

from jaxalign.recipes._plan_hlo import ELEMENT, Computation, Instruction, Module

__all__ = ["Peak", "allocated_bytes", "peak_of_live_ranges"]

# What can be made late: it has no effect, and is made of what is there all the time.
MOVABLE = ("broadcast", "copy", "convert", "bitcast", "reshape", "transpose", "iota", "all-gather", "fusion", "slice")
BACKWARD = "transpose(jvp"


@dataclass(frozen=True)
class Peak:
    """Bytes of one device, beside the step's arguments."""

    total: int
    """At the peak."""
    kept: int
    """What is kept of the forward pass as the backward pass begins."""


@dataclass(frozen=True)
class _Value:
    """What the compiler keeps in one place from its start up to its end."""

    start: int
    end: int
    bytes: int
    scope: str


def allocated_bytes(assignment: str, *, arguments: bool) -> int:
    """Bytes that the compiler allocated, of arguments or of all else, from its ``buffer-assignment`` text."""
    sizes = re.findall(r"^\s*allocation \d+: size (\d+),(.*)$", assignment, re.MULTILINE)
    return sum(
        int(size) for size, about in sizes if ("parameter" in about) == arguments and "thread-local" not in about
    )


def peak_of_live_ranges(live: str, assignment: str, module: Module) -> Peak:
    """The peak by the three rules.

    Args:
      live: the compiler's ``live-range`` text: the order of instructions, and of every value when it is live.
      assignment: its ``buffer-assignment`` text: where every value lies, and its size.
      module: the scheduled module they are of.
    """
    made = {one.name: one for body in module.computations.values() for one in body.instructions.values()}
    begins = _beginnings(module, _order(module, live))
    late = _late(module.entry, begins, {one.name for one in module.entry.parameters.values()})
    for loop in (one for one in made.values() if one.opcode == "while"):
        for body in (module.computations[name] for name in loop.called if name in module.computations):
            late |= _late(body, begins, _unchanged(body))
    dropped = _dropped(module)
    places = _places(assignment)
    ranges = {
        (name, index): (int(start), int(end))
        for name, index, start, end in re.findall(r"^\s+([\w.\-]+)\{([\d,]*)\}:(\d+)-(\d+)", live, re.MULTILINE)
    }
    ends = {(place, ranges[key][1]) for key, place in places.items() if key in ranges}
    values = []
    for key, (start, end) in ranges.items():
        name = key[0]
        if name in dropped or name not in made or key not in places:
            continue
        place = places[key]
        if (place, start) in ends and start < end:
            start += 1  # what lay there until then becomes this value, in place
        start = max(start, late.get(name, 0))
        if start <= end:
            values.append(_Value(start, end, place.bytes, made[name].scope))
    loops = [begins[one.name] for one in made.values() if one.opcode == "while" and BACKWARD in one.scope]
    backward = min((at for at in loops if at), default=0)
    kept = sum(one.bytes for one in values if one.start < backward <= one.end and _is_forward(one.scope))
    return Peak(_peak(values), kept)


def _is_forward(scope: str) -> bool:
    return "jvp(" in scope and BACKWARD not in scope


@dataclass(frozen=True)
class _Place:
    allocation: int
    offset: int
    bytes: int


def _places(assignment: str) -> dict[tuple[str, str], _Place]:
    """Where values lie that are neither arguments, results in their place, nor constants: (name, index) -> place."""
    found: dict[tuple[str, str], _Place] = {}
    number, counted = 0, False
    for line in assignment.splitlines():
        if head := re.match(r"\s*allocation (\d+): size \d+,(.*)", line):
            number = int(head[1])
            counted = not any(word in head[2] for word in ("parameter", "constant", "thread-local"))
        elif counted and (value := re.match(r"\s*value: <\d+ ([\w.\-]+?)(?:\{([\d,]*)\})?(?: \(phi\))? @\d+> "
                                            r"\(size=(\d+),offset=(\d+)\)", line)):  # fmt: skip
            found[value[1], value[2] or ""] = _Place(number, int(value[4]), int(value[3]))
    return found


def _peak(values: list[_Value]) -> int:
    changes: dict[int, int] = {}
    for one in values:
        changes[one.start] = changes.get(one.start, 0) + one.bytes
        changes[one.end + 1] = changes.get(one.end + 1, 0) - one.bytes
    held = peak = 0
    for at in sorted(changes):
        held += changes[at]
        peak = max(peak, held)
    return peak


def _order(module: Module, live: str) -> dict[str, int]:
    """The place of every instruction; of a bundle's part that has no instruction, its first reader's."""
    found = {name: int(at) for at, name in re.findall(r"^\s+(\d+):([\w.\-]+)\s*$", live, re.MULTILINE)}
    for body in module.computations.values():
        at = None
        for name in reversed(body.instructions):
            if ELEMENT not in name:
                at = found.get(name)
            elif at is not None:
                found[name] = at
    return found


def _beginnings(module: Module, order: dict[str, int]) -> dict[str, int]:
    """When each instruction begins: a loop does with its body's first instruction, which stands before it."""
    found: dict[str, int] = {}

    def begin(instruction: Instruction) -> int:
        if instruction.name not in found:
            at = order.get(instruction.name, math.inf)
            if instruction.opcode in ("while", "call", "conditional"):
                for name in instruction.called:
                    inside = module.computations[name].instructions.values() if name in module.computations else ()
                    at = min([at, *(begin(one) for one in inside)])
            found[instruction.name] = int(at) if at < math.inf else 0
        return found[instruction.name]

    for instruction in module.entry.instructions.values():
        begin(instruction)
    return found


def _unchanged(body: Computation) -> set[str]:
    """What a loop only reads: it hands these parts of its bundle on as they are."""
    if body.root.opcode != "tuple":
        return set()
    handed = (body.instructions[name] for name in body.root.operands)
    return {
        one.name
        for place, one in enumerate(handed)
        if one.opcode == "get-tuple-element" and re.search(rf"index={place}\b", one.attributes)
    }


def _late(entry: Computation, begins: dict[str, int], given: set[str]) -> dict[str, int]:
    """When what is made of constants and of what is ``given`` alone is first used."""
    free = set(given)
    for instruction in entry.instructions.values():
        if instruction.opcode == "constant" or (
            instruction.opcode in MOVABLE and all(name in free for name in instruction.operands)
        ):
            free.add(instruction.name)
    late: dict[str, int] = {}
    for instruction in reversed(entry.instructions.values()):
        if instruction.name in free - given and instruction.opcode != "constant":
            users = entry.users.get(instruction.name, ())
            starts = [late.get(one.name, begins[one.name]) for one in users if one.opcode != "tuple"]
            for bundle in (one for one in users if one.opcode == "tuple"):
                starts += [begins[one.name] for one in entry.users.get(bundle.name, ())]
            late[instruction.name] = min(starts, default=begins[instruction.name])
    return late


def _dropped(module: Module) -> set[str]:
    """What takes no memory: copies of arguments, constants that a loop only reads."""
    entry = module.entry
    found: set[str] = set()
    for instruction in entry.instructions.values():
        if instruction.opcode == "copy" and entry.instructions[instruction.operands[0]].opcode == "parameter":
            found.add(instruction.name)
        if instruction.opcode == "while":
            found |= _read_only_constants(module, instruction)
    return found


def _read_only_constants(module: Module, loop: Instruction) -> set[str]:
    """Broadcast constants among what a loop of the entry hands on unchanged."""
    entry = module.entry
    bundle = entry.instructions[loop.operands[0]]
    body = next((module.computations[name] for name in loop.called if name in module.computations), None)
    if bundle.opcode != "tuple" or body is None or body.root.opcode != "tuple":
        return set()
    found = set()
    for place, (name, handed) in enumerate(zip(bundle.operands, body.root.operands, strict=True)):
        leaf, kept = entry.instructions[name], body.instructions[handed]
        unchanged = kept.opcode == "get-tuple-element" and re.search(rf"index={place}\b", kept.attributes)
        constant = leaf.opcode in ("broadcast", "fusion") and all(
            entry.instructions[operand].opcode == "constant" for operand in leaf.operands
        )
        if unchanged and constant:
            found.add(name)
    return found
