"""One table from logical axes to mesh axes, and the shardings that follow from it."""

import functools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError, did_you_mean
from jaxalign.sharding._mesh import MESH_AXES

logger = logging.getLogger(__name__)

BATCH_AXES = ("data", "fsdp")
"""The mesh axes that rows of a batch are split over."""
LENGTH_AXIS = "sequence"
"""The mesh axis that the tokens of a row are split over."""

Rules = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis name -> mesh axis, several mesh axes, or None (replicated)."""

RULES: Rules = {
    # Activations and batches.
    "batch": BATCH_AXES,
    "length": LENGTH_AXIS,
    # Parameters. A matrix is split twice: its embed side over fsdp, its other side over tensor.
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "layers": None,  # scanned: every device runs every layer
    "positions": None,
    "labels": None,
    "norm": None,  # a vector of one norm or bias: too small to be worth a collective
    "rank": None,  # the inner side of a low-rank adapter
}
"""The table where nobody says otherwise (``parse_rules``)."""
FIXED = ("batch", "length")
"""What is not anyone's choice: models and data are written for it."""

AnyMesh = Mesh | AbstractMesh


def parse_rules(texts: Sequence[str], arrays: Collection[Sequence[str]] = ()) -> Rules:
    """Return ``RULES`` with some entries replaced, each written ``axis=mesh axes``.

    ``"embed=fsdp,sequence"`` splits the axis over both (in this order), ``"embed="`` over none.

    Args:
        texts: what to replace.
        arrays: the logical axes of every kind of array the rules are for; none may be split twice by one mesh axis.

    Raises:
        InputError: naming --sharding-rules: an axis that is unknown, fixed or given twice, an unknown mesh axis, a mesh
            axis twice in one array.
    """
    found: dict[str, str | tuple[str, ...] | None] = {}
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        choice = [axis for axis in RULES if axis not in FIXED]
        if not equals:
            raise InputError(f"--sharding-rules {text}: expected AXIS=MESH-AXES, AXIS one of {', '.join(choice)}")
        if name not in choice:
            known = did_you_mean(name, choice, what="the axes are")
            raise InputError(f"--sharding-rules {text}: unknown axis {name!r}; {known}")
        if name in found:
            raise InputError(f"--sharding-rules {text}: {name} is given twice")
        axes = tuple(axis.strip() for axis in value.split(",")) if value else ()
        if unknown := [axis for axis in axes if axis not in MESH_AXES]:
            known = did_you_mean(unknown[0], MESH_AXES, what="the mesh's axes are")
            raise InputError(f"--sharding-rules {text}: unknown mesh axis {unknown[0]!r}; {known}")
        found[name] = axes[0] if len(axes) == 1 else axes or None
    rules = {**RULES, **found}
    for array in [*([name] for name in found), *arrays]:
        taken: dict[str, str] = {}
        for name in array:
            for axis in mesh_axes(rules[name]):
                if axis in taken:
                    raise InputError(
                        f"--sharding-rules {' '.join(texts)}: the mesh axis {axis} would split one array twice, by "
                        f"{taken[axis]} and by {name}"
                    )
                taken[axis] = name
    return rules


def mesh_axes(target: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes that an entry of the table names."""
    return () if target is None else (target,) if isinstance(target, str) else tuple(target)


def partition_spec(
    logical_axes: Sequence[str | None],
    shape: Sequence[int],
    mesh: AnyMesh,
    rules: Rules = RULES,
) -> PartitionSpec:
    """Return how an array with these logical axes and this shape lies on the mesh.

    Axes are read from left to right. An axis replicates where (each is logged once a process)

    - the mesh axes it asks for are already taken by an axis to its left: one mesh axis can split an array only once,
      so in ``("embed", "embed")`` the first is split and the second is whole;
    - its size is not a multiple of its number of shards.

    Args:
        logical_axes: one name (a key of ``rules``) or None for each dimension.
        shape: the array's shape.
        mesh: a mesh, or an abstract mesh of any size; an axis it lacks has size 1.
        rules: the table; ``RULES`` unless told.

    Raises:
        ValueError: if the lengths differ or a name is not in the table (a typo would silently replicate).
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"logical axes {tuple(logical_axes)} do not fit the shape {tuple(shape)}")
    taken: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in zip(logical_axes, shape, strict=True):
        if name is not None and name not in rules:
            raise ValueError(f"unknown logical axis {name!r}: the rules name {sorted(rules)}")
        axes = () if name is None else tuple(axis for axis in mesh_axes(rules[name]) if axis in mesh.shape)
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if shards > 1 and taken.intersection(axes):
            _log_once(f"axis {name!r} of {tuple(logical_axes)} is replicated: {axes} already splits an earlier axis")
            axes = ()
        elif size % shards:
            _log_once(f"axis {name!r} of size {size} is replicated: it does not divide into {shards} shards of {axes}")
            axes = ()
        elif taken.intersection(axes):  # axes of size 1, twice: the specification may still name each only once
            axes = ()
        taken.update(axes)
        spec.append(None if not axes else axes[0] if len(axes) == 1 else axes)
    while spec and spec[-1] is None:  # P("fsdp") and P("fsdp", None) mean the same but do not compare equal
        spec.pop()
    return PartitionSpec(*spec)


def tree_shardings(axes: Any, shapes: Any, mesh: AnyMesh, rules: Rules = RULES) -> Any:
    """Return a tree of ``NamedSharding`` like ``shapes``.

    Args:
        axes: a tree like ``shapes`` whose leaves are tuples of logical axis names.
        shapes: a tree of arrays or ``jax.ShapeDtypeStruct``.
        mesh: the mesh (concrete, or abstract for planning).
        rules: the table of ``partition_spec``.
    """

    def sharding(leaf: Any, names: Sequence[str | None]) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh, rules))

    return jax.tree.map(sharding, shapes, axes)


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding of a batch's rows, the first axis of each leaf: over ``("data", "fsdp")``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def data_shards(mesh: AnyMesh) -> int:
    """Return into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def length_shards(mesh: AnyMesh) -> int:
    """Return into how many parts the tokens of a row are split."""
    return int(mesh.shape.get(LENGTH_AXIS, 1))


def row_share(mesh: Mesh) -> tuple[int, int]:
    """Return ``(index, count)``: this process holds part ``index`` of the ``count`` equal parts of a batch's rows.

    Processes that share rows (their devices differ only along ``tensor`` and ``sequence``) have the same index.

    Raises:
        InputError: if the processes' rows are not such parts, as where some share part of their rows.
    """
    parts = row_parts(mesh)
    own = parts[jax.process_index()]
    return sorted(set(parts.values())).index(own), len(set(parts.values()))


def row_order(mesh: Mesh) -> list[int]:
    """Return the row shards in the order of the parts of ``row_share``: block k of a batch lies in shard ``order[k]``.

    It is 0, 1, 2 ... where the mesh's devices are in the order of their processes. On a torus they need not be: a host
    has a square of it, and the mesh goes along its rows.
    """
    return [shard for part in sorted(set(row_parts(mesh).values())) for shard in part]


def row_parts(
    mesh: Mesh, process_of: Callable[[jax.Device], int] = lambda device: device.process_index
) -> dict[int, tuple[int, ...]]:
    """Return the row shards that each process's devices hold; raises ``InputError`` as ``row_share``."""
    shards = data_shards(mesh)
    held: dict[int, set[int]] = {}
    for device, (rows, *_) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        held.setdefault(process_of(device), set()).update(range(*rows.indices(shards)))
    parts = {process: tuple(sorted(own)) for process, own in held.items()}
    distinct = set(parts.values())
    if len({len(part) for part in distinct}) > 1 or sum(map(len, distinct)) != shards:
        process, part = min(parts.items())
        raise InputError(
            f"--mesh: process {process} would hold the row shards {list(part)} of {shards}, and others some of these "
            "and more: take a tensor axis that divides a host's devices or is a multiple of them"
        )
    return parts


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)
