"""Hidden states of some tokens, wherever the mesh holds them."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxalign.models._mesh import LENGTH_AXIS, ambient_mesh, length_axis, length_shards, row_axes


def take_tokens(hidden: jax.Array, index: jax.Array) -> jax.Array:
    """hidden[..., index, :], row by row.

    Where the ambient mesh splits rows of T tokens, what is taken is shared out over the pieces: each device holds
    S / pieces of it, and the hidden states go round (``take_around``), so that no device ever holds a whole row.

    Args:
        hidden: ``[..., T, D]``.
        index: int ``[..., S]``.

    Returns:
        ``[..., S, D]``.
    """
    mesh = ambient_mesh()
    if mesh is None or length_axis(mesh, hidden.shape[-2]) is None:
        return jnp.take_along_axis(hidden, index[..., None], axis=-2)
    rows = hidden.reshape(-1, *hidden.shape[-2:])
    wanted = pad_to(length_shards(mesh), index.reshape(-1, index.shape[-1]))
    place = PartitionSpec(row_axes(mesh, rows.shape[0]) or None, LENGTH_AXIS)
    taken = jax.shard_map(take_around, in_specs=(place, place), out_specs=place)(rows, wanted)
    return taken[:, : index.shape[-1]].reshape(*index.shape, hidden.shape[-1])


def take_around(piece: jax.Array, index: jax.Array) -> jax.Array:
    """One device's part: its share of the sources, of pieces that go round over the sequence axis.

    Args:
        piece: ``[B, T / pieces, D]``.
        index: int ``[B, S / pieces]``, columns of the whole row.

    Returns:
        ``[B, S / pieces, D]``.
    """
    shards, size = jax.lax.axis_size(LENGTH_AXIS), piece.shape[1]
    found = None
    for step in range(shards):
        column = index - (jax.lax.axis_index(LENGTH_AXIS) - step) % shards * size
        here = (column >= 0) & (column < size)
        some = jnp.take_along_axis(piece, jnp.clip(column, 0, size - 1)[..., None], axis=1)
        found = jnp.where(here[..., None], some, 0 if found is None else found)
        if step < shards - 1:
            piece = jax.lax.ppermute(piece, LENGTH_AXIS, [(place, (place + 1) % shards) for place in range(shards)])
    assert found is not None
    return found


def pad_to(multiple: int, array: jax.Array) -> jax.Array:
    """``[B, S]`` with zeros after its columns, up to a multiple."""
    return jnp.pad(array, ((0, 0), (0, -array.shape[1] % multiple)))
