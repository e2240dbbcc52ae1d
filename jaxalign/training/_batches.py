"""From host batches to the mesh."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.sharding import (
    BATCH_AXES,
    LENGTH_AXIS,
    batch_sharding,
    data_shards,
    length_shards,
    row_order,
    row_share,
)


def batch_shardings(batch: Any, mesh: Mesh) -> Any:
    """Where the leaves of a batch lie: rows over ``("data", "fsdp")`` and, where the mesh splits rows of tokens and the
    number of pieces divides them, what there is one of for every token ``[..., T]`` or target ``[..., S]`` over
    ``sequence``.

    Returns:
        One sharding for all leaves, or a tree like ``batch``.
    """
    rows, pieces = batch_sharding(mesh), length_shards(mesh)
    if pieces == 1:
        return rows

    beside = getattr(batch, "pretraining", None)
    if beside is not None:
        alone = batch_shardings(batch.replace(pretraining=None), mesh)
        return alone.replace(pretraining=batch_shardings(beside, mesh))
    shapes = [getattr(batch, name).shape for name in ("tokens", "targets") if hasattr(batch, name)]

    def place(leaf: Any) -> NamedSharding:
        for shape in shapes:
            if leaf.shape[: len(shape)] == shape and shape[-1] % pieces == 0:
                return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *(None,) * (len(shape) - 2), LENGTH_AXIS))
        return rows

    return jax.tree.map(place, batch)


def constrain_batch(batch: Any, mesh: Mesh) -> Any:
    """Hold a batch, inside a jitted function, where ``batch_shardings`` says."""
    return jax.lax.with_sharding_constraint(batch, batch_shardings(batch, mesh))


def input_sharding(mesh: Mesh) -> NamedSharding | None:
    """Of a batch as the argument of a jitted function: one for all its leaves, or as each leaf lies."""
    return batch_sharding(mesh) if length_shards(mesh) == 1 else None


def check_rows(batch: Any, mesh: Mesh, accumulation: int = 1) -> None:
    """Refuse a global batch whose rows do not divide into accumulation x data shards, or whose tokens of a row do not
    divide into the mesh's pieces.

    The batch that stands beside another (its field ``pretraining``) has rows of its own; each divides.

    Raises:
        InputError: naming the flags.
        ValueError: leaves of one batch that differ in rows.
    """
    pieces = length_shards(mesh)
    for one in (batch, getattr(batch, "pretraining", None)):
        tokens = getattr(one, "tokens", None)
        length = 0 if tokens is None else tokens.shape[-1]
        if length % pieces:
            raise InputError(
                f"--mesh: rows of {length} tokens do not divide into sequence={pieces} pieces; "
                f"data.make_batches(pieces={pieces}) pads them"
            )
    rows: dict[bool, set[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        beside = bool(path) and getattr(path[0], "name", None) == "pretraining"
        rows.setdefault(beside, set()).add(leaf.shape[0])
    for counts in rows.values():
        if len(counts) != 1:
            raise ValueError(f"the leaves of a batch must have one number of rows, not {sorted(counts)}")
        (count,) = counts
        check_row_count(count, mesh, accumulation)


def check_row_count(count: int, mesh: Mesh, accumulation: int = 1) -> None:
    """Refuse so many rows where they do not divide into accumulation x data shards; raises ``InputError``."""
    shards = data_shards(mesh)
    if count % (accumulation * shards):
        parts = f"{accumulation} micro-batches (--accumulation) on " if accumulation > 1 else ""
        raise InputError(f"--batch-size: {count} rows do not divide into {parts}{shards} data shards (--mesh)")


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Lay a host batch out on the mesh, as ``batch_shardings`` says.

    Args:
        batch: a pytree of host arrays ``[B, ...]``; on several processes each passes the part of the rows that
            ``sharding.row_share`` says, and the global batch has them in the order of ``sharding.row_order``.
            Arrays of all processes are whole.
        mesh: the mesh.

    Raises:
        InputError: if the rows do not divide into the mesh's data shards.
    """
    shardings = batch_shardings(batch, mesh)
    if jax.process_count() == 1:
        check_rows(batch, mesh)
        return jax.device_put(batch, shardings)
    shards = data_shards(mesh)
    index, count = row_share(mesh)
    share = shards // count

    def is_global(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable

    def whole(leaf: Any) -> tuple[int, ...]:
        return leaf.shape if is_global(leaf) else (leaf.shape[0] * count, *leaf.shape[1:])

    check_rows(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(whole(leaf), leaf.dtype), batch), mesh)
    order = row_order(mesh)[index * share : (index + 1) * share]

    def place(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if is_global(leaf):
            return jax.device_put(leaf, sharding)
        rows = leaf.shape[0] // share  # of a shard

        def block(places: tuple[slice, ...] | None) -> Any:
            assert places is not None
            local = order.index((places[0].start or 0) // rows)
            return leaf[(slice(local * rows, (local + 1) * rows), *places[1:])]

        return jax.make_array_from_callback(whole(leaf), sharding, block)

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), batch)
    return jax.tree.map(place, batch, shardings)


def prefetch(batches: Iterable[Any], mesh: Mesh) -> Iterator[tuple[Any, Any]]:
    """Yield ``(host batch, device batch)``, having started the transfer of the next one.

    The next host batch is made while the device still works on what was dispatched for this one.
    """
    ahead: tuple[Any, Any] | None = None
    for batch in batches:
        ready, ahead = ahead, (batch, put_batch(batch, mesh))
        if ready is not None:
            yield ready
    if ahead is not None:
        yield ahead
