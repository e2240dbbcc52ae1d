"""What the ambient mesh (``jax.set_mesh``) asks of activations."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

ROW_AXES = ("data", "fsdp")
WEIGHT_AXIS = "fsdp"
VOCABULARY_AXIS = "tensor"
LENGTH_AXIS = "sequence"


def ambient_mesh() -> AbstractMesh | None:
    """The mesh set by ``jax.set_mesh`` if it spans more than one device and XLA places its axes, else None.

    Inside ``shard_map`` the axes are manual: there a function sees one shard and nothing is left to place.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return None
    return mesh


def row_axes(mesh: AbstractMesh, rows: int) -> tuple[str, ...]:
    """The mesh axes a batch of ``rows`` is split over: all of data and fsdp, or none where they do not divide it."""
    axes = tuple(axis for axis in ROW_AXES if mesh.shape.get(axis, 1) > 1)
    parts = 1
    for axis in axes:
        parts *= mesh.shape[axis]
    return axes if rows % parts == 0 else ()


def length_shards(mesh: AbstractMesh | None) -> int:
    """Into how many pieces the mesh splits a row of tokens."""
    return 1 if mesh is None else int(mesh.shape.get(LENGTH_AXIS, 1))


def length_axis(mesh: AbstractMesh | None, length: int) -> str | None:
    """The mesh axis that rows of ``length`` tokens are split over; None where there is none or it does not divide."""
    shards = length_shards(mesh)
    return LENGTH_AXIS if shards > 1 and length % shards == 0 else None


def constrain_rows(array: jax.Array, axis: int = 0) -> jax.Array:
    """Hold an array row-sharded under the ambient mesh; rows that do not divide stay as they lie.

    Of activations ``[B, ...]``: so that XLA gathers weights (FSDP) and never activations.

    Args:
        array: any array with rows.
        axis: where its rows are.
    """
    mesh = ambient_mesh()
    axes = () if mesh is None else row_axes(mesh, array.shape[axis])
    if not axes:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*(None,) * axis, axes))


def constrain_tokens(array: jax.Array) -> jax.Array:
    """Hold activations ``[B, T, ...]`` split by rows and, on a mesh with a sequence axis, by pieces of every row."""
    mesh = ambient_mesh()
    length = length_axis(mesh, array.shape[1])
    if mesh is None or length is None:
        return constrain_rows(array)
    return jax.lax.with_sharding_constraint(array, PartitionSpec(row_axes(mesh, array.shape[0]) or None, length))


def row_shards() -> int:
    """Into how many parts the ambient mesh splits rows; 1 without one."""
    mesh = ambient_mesh()
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ROW_AXES)
