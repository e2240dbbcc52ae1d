"""From host batches to the mesh."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.errors import InputError
from jaxalign.sharding import batch_sharding, data_shards, row_order, row_share


def check_rows(batch: Any, mesh: Mesh, accumulation: int = 1) -> None:
    """Refuse a global batch whose rows do not divide into accumulation x data shards.

    The batch that stands beside another (its field ``pretraining``) has a number of rows of its own; each divides.

    Raises:
        InputError: naming the flags.
        ValueError: leaves of one batch that differ in rows.
    """
    shards = data_shards(mesh)
    rows: dict[bool, set[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        beside = bool(path) and getattr(path[0], "name", None) == "pretraining"
        rows.setdefault(beside, set()).add(leaf.shape[0])
    for counts in rows.values():
        if len(counts) != 1:
            raise ValueError(f"the leaves of a batch must have one number of rows, not {sorted(counts)}")
        (count,) = counts
        if count % (accumulation * shards):
            parts = f"{accumulation} micro-batches (--accumulation) on " if accumulation > 1 else ""
            raise InputError(f"--batch-size: {count} rows do not divide into {parts}{shards} data shards (--mesh)")


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Lay a host batch out on the mesh, rows over ``("data", "fsdp")``.

    Args:
        batch: a pytree of host arrays ``[B, ...]``; on several processes each passes the part of the rows that
            ``sharding.row_share`` says, and the global batch has them in the order of ``sharding.row_order``.
            Arrays of all processes are whole.
        mesh: the mesh.

    Raises:
        InputError: if the rows do not divide into the mesh's data shards.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        check_rows(batch, mesh)
        return jax.device_put(batch, sharding)
    shards = data_shards(mesh)
    index, count = row_share(mesh)
    share = shards // count
    order = row_order(mesh)[index * share : (index + 1) * share]

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        rows = leaf.shape[0] // share  # of a shard

        def block(places: tuple[slice, ...] | None) -> Any:
            assert places is not None
            local = order.index((places[0].start or 0) // rows)
            return leaf[local * rows : (local + 1) * rows]

        return jax.make_array_from_callback((leaf.shape[0] * count, *leaf.shape[1:]), sharding, block)

    return jax.tree.map(place, batch)


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
