"""A compiled program as text, read: computations, instructions, how often each is run, replica groups."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

__all__ = ["Computation", "Instruction", "Module", "Shape", "parse_module", "replica_groups"]

WIDTHS = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
    "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
"""Bytes an element; what is not here (a token, a float of 8 bits or less) takes up one or none."""


@dataclass(frozen=True)
class Shape:
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return self.size * WIDTHS.get(self.dtype, 1 if self.dtype.startswith("f8") else 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """The leaves of its result."""
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    @cached_property
    def scope(self) -> str:
        """JAX's own name of the operation and of what it stands in: ``jit(f)/transpose(jvp())/while/body/dot``."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def dims_of(self, attribute: str) -> tuple[int, ...]:
        """An attribute such as ``lhs_contracting_dims={1,2}``; empty where it is not there."""
        found = re.search(attribute + r"=\{([\d,]*)\}", self.attributes)
        return tuple(int(part) for part in found[1].split(",") if part) if found else ()

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The computations it runs: a fusion's, a call's, a loop's body (not its condition), a branch's."""
        names = re.findall(r"(?:calls|body|to_apply)=%?([\w.\-]+)", self.attributes)
        for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes):
            names += [name.strip().lstrip("%") for name in group.split(",")]
        names += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.attributes)
        return tuple(names)

    @property
    def trips(self) -> int | None:
        """How often a loop runs, where the compiler knows."""
        found = re.search(r'known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Computation:
    """Instructions in order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Who reads an instruction, by its name."""
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    def scope(self, instruction: Instruction) -> str:
        """An instruction's scope, or its first reader's: products that the compiler rewrites without their axes of one
        lose their name, and the reshape behind them keeps it. Empty where neither has one."""
        readers = self.users.get(instruction.name, ())
        return instruction.scope or next((one.scope for one in readers if one.scope), "")

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By number."""
        every = self.instructions.values()
        return {int(one.operands[0]): one for one in every if one.opcode == "parameter"}

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in reversed(self.instructions.values()) if one.root)


@dataclass(frozen=True)
class Module:
    """A program of one device."""

    computations: dict[str, Computation]
    entry: Computation

    def runs(self, unknown_trips: int = 1) -> Iterator[tuple[Computation, Instruction, float, str]]:
        """Every instruction of the program with the number of times it runs and its scope, or its fusion's.

        Args:
          unknown_trips: of a loop whose length only the data decide.
        """
        yield from self._runs(self.entry, 1.0, unknown_trips, "")

    def _runs(
        self, computation: Computation, times: float, unknown: int, outer: str
    ) -> Iterator[tuple[Computation, Instruction, float, str]]:
        for instruction in computation.instructions.values():
            scope = computation.scope(instruction) or outer
            yield computation, instruction, times, scope
            inner = times
            if instruction.opcode == "while":
                inner *= unknown if instruction.trips is None else instruction.trips
            elif instruction.opcode not in ("fusion", "call", "conditional", "custom-call"):
                continue  # what reductions and scatters apply to pairs of numbers
            for name in instruction.called:
                if name in self.computations:
                    yield from self._runs(self.computations[name], inner, unknown, scope)


ELEMENT = "#"
"""Between a bundle's name and the number of its part, where a part is read without an instruction of its own."""
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s+\(.*->.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = (.*)$")
_LEAF = re.compile(r"(\w+)\[([\d,<=]*)\]")


def parse_module(text: str) -> Module:
    """Read the text of a compiled module, as ``Compiled.as_text`` gives it.

    Raises:
      ValueError: a text without an entry computation.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry: Computation | None = None
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (header := _HEADER.match(line)):
            current = Computation(header[2])
            computations[current.name] = current
            entry = current if header[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            instruction = _instruction(found[2], found[3], root=bool(found[1]))
            for operand in instruction.operands:
                if ELEMENT in operand and operand not in current.instructions:
                    current.instructions[operand] = _element(current, operand)
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("no entry computation: not the text of a compiled module")
    return Module(computations, entry)


def _element(computation: Computation, name: str) -> Instruction:
    """Of ``bundle#3``, as newer compilers write the fourth part of a bundle: the instruction that older ones have."""
    bundle, _, index = name.partition(ELEMENT)
    shapes = computation.instructions[bundle].shapes[int(index) :][:1]
    return Instruction(name, "get-tuple-element", shapes, (bundle,), f", index={index}", root=False)


def _instruction(name: str, text: str, *, root: bool) -> Instruction:
    shape_end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    rest = text[shape_end:].lstrip()
    opcode, _, tail = rest.partition("(")
    end = _closing("(" + tail, 0) - 1
    inside, attributes = tail[:end], tail[end + 1 :]
    shapes = tuple(
        Shape(dtype, tuple(int(part.lstrip("<=")) for part in dims.split(",") if part))
        for dtype, dims in _LEAF.findall(re.sub(r"\{[^{}]*\}", "", text[:shape_end]))
    )
    if opcode == "parameter":
        operands: tuple[str, ...] = (inside.strip(),)
    elif opcode == "constant":
        operands = ()
    else:
        operands = tuple(re.findall(r"%([\w.\-]+(?:#\d+)?)", inside))
    return Instruction(name, opcode, shapes, operands, attributes, root)


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if not depth:
                return place
    return len(text)


def replica_groups(attributes: str, devices: int) -> np.ndarray:
    """The groups of a collective: int ``[groups, members]`` of device numbers.

    Three spellings: ``{{0,1},{2,3}}``; ``[2,2]<=[4]`` and ``[2,2]<=[2,2]T(1,0)``, the numbers in a box, its axes
    transposed; ``mesh['x'=2,'y'=2] {'y'}``, groups along axes of a mesh. None, or ``{}``, is all devices.

    Raises:
      ValueError: a fourth.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        found = re.findall(r"\{(\d+),(\d+)\}", pairs[1])
        return np.array([[int(one), int(other)] for one, other in found if one != other] or [[0]])
    at = attributes.find("replica_groups=")
    text = "" if at < 0 else attributes[at + len("replica_groups=") :]
    if not text or text.startswith("{}"):
        return np.arange(devices)[None]
    if text.startswith("{{"):
        groups = re.findall(r"\{([\d,]+)\}", text[: text.index("}}") + 2])
        return np.array([[int(member) for member in group.split(",")] for group in groups])
    if box := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (tuple(int(x) for x in part.split(",")) if part else () for part in box.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape)
    if named := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\([^()]*(?:\([^()]*\))?\))? ?\{([^}]*)\}", text):
        return _along(named[1], named[2], text)
    raise ValueError(f"replica groups in a spelling that is not known: {text[:80]}")


def _along(axes: str, chosen: str, text: str) -> np.ndarray:
    """Groups along the chosen axes of a mesh; of an axis written ``'x':(2)4`` a part: 4 steps of what 2 leaves."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    dims: list[tuple[str, int]] = []
    wanted: set[str] = set()
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        split = next(((int(before), int(own)) for other, before, own in parts if other == name and own), None)
        if split is None:
            dims.append((name, size))
            wanted |= {name for other, _, own in parts if other == name and not own}
            continue
        before, own = split
        if size % (before * own):
            raise ValueError(f"replica groups in a spelling that is not known: {text[:80]}")
        dims += [(f"{name} before", before), (f"{name} own", own), (f"{name} after", size // (before * own))]
        wanted.add(f"{name} own")
    numbers = np.arange(math.prod(size for _, size in dims)).reshape([size for _, size in dims])
    if order := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        source = tuple(int(x) for x in order[1].split(","))
        held = np.arange(math.prod(source)).reshape(source)
        held = held.transpose([int(x) for x in order[2].split(",")]) if order[2] else held
        numbers = held.reshape(numbers.shape)
    inside = [place for place, (name, _) in enumerate(dims) if name in wanted]
    outside = [place for place in range(len(dims)) if place not in inside]
    members = math.prod(dims[place][1] for place in inside)
    return numbers.transpose(outside + inside).reshape(-1, members)
