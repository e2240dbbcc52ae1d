"""From host batches to the mesh."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.sharding import batch_sharding


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Lay a host batch out on the mesh, rows over ``("data", "fsdp")``.

    Args:
        batch: a pytree of host arrays ``[B, ...]``; on several processes each passes its own rows, and the global
            batch is their concatenation.
        mesh: the mesh.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


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
