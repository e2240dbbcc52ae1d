"""What the ambient mesh (``jax.set_mesh``) asks of activations."""

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

ROW_AXES = ("data", "fsdp")
WEIGHT_AXIS = "fsdp"
VOCABULARY_AXIS = "tensor"


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


def constrain_rows(hidden: jax.Array) -> jax.Array:
    """Hold activations ``[B, ...]`` row-sharded, so that XLA gathers weights (FSDP) and never activations."""
    mesh = ambient_mesh()
    if mesh is None:
        return hidden
    axes = row_axes(mesh, hidden.shape[0])
    if not axes:
        return hidden
    return jax.lax.with_sharding_constraint(hidden, PartitionSpec(axes))
