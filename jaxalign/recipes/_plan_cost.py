"""What a compiled step costs a device: products, bytes through its memory, bytes over each mesh axis."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxalign.recipes._plan_hlo import Computation, Instruction, Module, replica_groups

__all__ = ["Cost", "Traffic", "count_cost"]

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
RECOMPUTED = "rematted_computation"
# What a value passes through without becoming another.
TRANSPARENT = ("get-tuple-element", "bitcast", "copy", "convert", "reshape", "transpose")


@dataclass(frozen=True)
class Traffic:
    """What one device sends (and as much receives) in one step, in rings, of one kind along one set of axes."""

    kind: str
    axes: tuple[str, ...]
    members: int
    """Devices of a group."""
    span: int
    """The least power of two n such that every group lies within device numbers [k n, (k + 1) n): whether all stay
    within machines of n. A group 6 ... 11 is of two machines of 8, hence 16."""
    bytes: float
    count: float
    """Collectives in a step."""


@dataclass
class Cost:
    """Of one step, on one device."""

    flops: float = 0.0
    """Of matrix products, 2 a multiply-add; elementwise work is not counted."""
    recomputed_flops: float = 0.0
    """Of them, those that rematerialisation adds."""
    bytes: float = 0.0
    """Read and written by matrix products and collectives; elementwise work is taken as fused with them."""
    traffic: dict[tuple[str, tuple[str, ...], int], Traffic] = field(default_factory=dict)


def count_cost(module: Module, mesh: Mapping[str, int], *, unknown_trips: int = 1) -> Cost:
    """Walk the program, loops as often as they run.

    Args:
      module: the compiled step of one device.
      mesh: axis -> size, in the order in which device numbers run through them.
      unknown_trips: of a loop that ends by a condition on data, at most.
    """
    cost = Cost()
    for computation, instruction, times, scope in module.runs(unknown_trips):
        if instruction.opcode == "dot":
            _count_product(cost, computation, instruction, times, scope)
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            _count_collective(cost, module, computation, instruction, kind, mesh, times)
    return cost


def _count_product(cost: Cost, computation: Computation, dot: Instruction, times: float, scope: str) -> None:
    left, right = (computation.instructions[name] for name in dot.operands[:2])
    contracted = 1
    for place in dot.dims_of("lhs_contracting_dims"):
        contracted *= left.shapes[0].dims[place]
    flops = 2.0 * dot.shapes[0].size * contracted * times
    cost.flops += flops
    if RECOMPUTED in scope:
        cost.recomputed_flops += flops
    cost.bytes += (left.bytes + right.bytes + dot.bytes) * times


def _count_collective(
    cost: Cost,
    module: Module,
    computation: Computation,
    instruction: Instruction,
    kind: str,
    mesh: Mapping[str, int],
    times: float,
) -> None:
    devices = int(np.prod(list(mesh.values())))
    groups = replica_groups(instruction.attributes, devices)
    members = groups.shape[1]
    if members < 2 or not times:
        return
    size = sum(computation.instructions[name].bytes for name in instruction.operands)
    cost.bytes += (size + instruction.bytes) * times
    if kind == "all-reduce" and all(
        _sliced(module, computation, user, instruction.name) for user in computation.users.get(instruction.name, ())
    ):
        kind = "reduce-scatter"  # which accelerators' compilers make of it
    share = (members - 1) / members
    sent = {
        "all-gather": size * (members - 1),
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * share,
        "all-to-all": size * share,
    }.get(kind, float(size))
    axes = _axes(groups, mesh)
    key = (kind, axes, members)
    old = cost.traffic.get(key)
    span = 1 << int((groups.max(axis=1) ^ groups.min(axis=1)).max()).bit_length()
    cost.traffic[key] = Traffic(
        kind,
        axes,
        members,
        span,
        (old.bytes if old else 0.0) + sent * times,
        (old.count if old else 0.0) + times,
    )


def _sliced(module: Module, computation: Computation, user: Instruction, operand: str) -> bool:
    """Whether a reader takes no more than a slice of the value."""
    if user.opcode == "dynamic-slice":
        return user.operands[0] == operand
    if user.opcode in TRANSPARENT:
        return all(_sliced(module, computation, other, user.name) for other in computation.users.get(user.name, ()))
    if user.opcode in ("fusion", "call") and user.called and user.called[0] in module.computations:
        inner = module.computations[user.called[0]]
        places = [place for place, name in enumerate(user.operands) if name == operand]
        return all(
            _sliced(module, inner, other, inner.parameters[place].name)
            for place in places
            for other in inner.users.get(inner.parameters[place].name, ())
        ) and not any(inner.parameters[place].root for place in places)
    return False


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a group's members differ."""
    places = np.stack(np.unravel_index(groups[0], tuple(mesh.values())))
    return tuple(name for name, row in zip(mesh, places, strict=True) if len(set(row.tolist())) > 1)
