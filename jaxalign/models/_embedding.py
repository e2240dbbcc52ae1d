"""Token and position embeddings, on one device or from sharded tables."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from jaxalign.models._config import ModelConfig
from jaxalign.models._mesh import VOCABULARY_AXIS, WEIGHT_AXIS, ambient_mesh, length_axis, row_axes


def embed_tokens(
    config: ModelConfig, tables: dict[str, jax.Array], tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    """Token (and learned position) embeddings in the compute dtype; ids outside a table are clipped into it.

    Args:
        config: the model.
        tables: ``{"tokens": [V, E](, "positions": [P, D])(, "project_in": [E, D])}``.
        tokens: int ``[B, T]``.
        positions: int ``[B or 1, T]``; read only where positions are learned.

    Returns:
        ``[B, T, D]``.
    """
    mesh = ambient_mesh()
    rows = () if mesh is None else row_axes(mesh, tokens.shape[0])
    table = tables["tokens"]
    if mesh is not None and (rows or length_axis(mesh, tokens.shape[1])):
        hidden = _sharded_lookup(mesh, rows, table, tokens)
    else:
        hidden = _lookup(_whole(mesh, table), tokens)
    hidden = hidden.astype(config.compute_dtype)
    if config.embedding_scale is not None:
        hidden = hidden * jnp.asarray(config.embedding_scale, config.compute_dtype)
    if config.embedding_width is not None:
        hidden = hidden @ tables["project_in"].astype(config.compute_dtype)
    if config.position == "learned":
        index = positions + config.position_offset
        hidden = hidden + _lookup(_whole(mesh, tables["positions"]), index).astype(config.compute_dtype)
    return hidden


def _lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of the table; by way of float32, because the gradient adds up a row for every token that looked it up."""
    wide = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    return wide.at[ids].get(mode="clip").astype(table.dtype)


def _whole(mesh: AbstractMesh | None, table: jax.Array) -> jax.Array:
    """The table on every device: a gather from a split table is more than XLA's partitioner can do well."""
    return table if mesh is None else jax.lax.with_sharding_constraint(table, PartitionSpec())


def _sharded_lookup(mesh: AbstractMesh, rows: tuple[str, ...], table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Each device looks the tokens of its rows (its pieces of rows) up in its slice of the vocabulary; slices that do
    not hold them add zeros.

    Left to itself, XLA replicates the looked-up activations where both table and tokens are split.
    """
    tensor = mesh.shape.get(VOCABULARY_AXIS, 1)
    split = tensor > 1 and table.shape[0] % tensor == 0
    gathered = WEIGHT_AXIS in rows and table.shape[1] % mesh.shape[WEIGHT_AXIS] == 0

    def local(tokens: jax.Array, table: jax.Array) -> jax.Array:
        if gathered:
            table = jax.lax.all_gather(table, WEIGHT_AXIS, axis=1, tiled=True)
        if not split:
            return _lookup(table, tokens)
        size = table.shape[0]
        ids = jnp.clip(tokens, 0, tensor * size - 1) - jax.lax.axis_index(VOCABULARY_AXIS) * size
        here = (ids >= 0) & (ids < size)
        return jax.lax.psum(jnp.where(here[..., None], _lookup(table, ids), 0), VOCABULARY_AXIS)

    spec = PartitionSpec(VOCABULARY_AXIS if split else None, WEIGHT_AXIS if gathered else None)
    place = PartitionSpec(rows or None, length_axis(mesh, tokens.shape[1]))
    return jax.shard_map(local, in_specs=(place, spec), out_specs=place)(tokens, table)
