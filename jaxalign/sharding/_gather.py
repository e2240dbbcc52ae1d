"""From the devices back to the host."""

from typing import Any

import jax
import numpy as np


def fetch(tree: Any) -> Any:
    """``jax.device_get`` of a tree, on every process; in a run of several processes all must call this."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(to_host, tree)


def to_host(array: jax.Array | np.ndarray, row: int | None = None) -> np.ndarray:
    """A whole array, or one row of it, on every process; in a run of several processes all must call this.

    Nothing stays behind: ``np.asarray`` of a ``jax.Array`` that is not in the host's memory keeps its copy as long as
    the array lives, which for a model means a second one in the host's memory. What is returned may be a view of the
    device's memory where that is the host's.

    Args:
        array: on one device or sharded, over the devices of any processes; or a host array.
        row: index into the first axis; only this row is gathered.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array) if row is None else np.asarray(array[row])
    if not array.is_fully_addressable:
        if array.is_fully_replicated:
            return to_host(array.addressable_data(0), row)
        from jax.experimental import multihost_utils

        part = array if row is None else _row(array, row)
        return np.asarray(multihost_utils.process_allgather(part, tiled=True))
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    if len(shards) == 1:
        return _from_device(shards[0].data, row)
    gathered = np.empty(array.shape if row is None else array.shape[1:], array.dtype)
    for shard in shards:
        if row is None:
            gathered[shard.index] = _from_device(shard.data, None)
        else:
            start, stop, _ = shard.index[0].indices(array.shape[0])
            if start <= row < stop:
                gathered[shard.index[1:]] = _from_device(shard.data, row - start)
    return gathered


def _from_device(data: jax.Array, row: int | None) -> np.ndarray:
    if next(iter(data.devices())).platform == "cpu":
        host = np.asarray(data)  # a view
        return host if row is None else host[row]
    return np.asarray(jax.numpy.copy(data) if row is None else _row(data, row))


@jax.jit
def _row(array: jax.Array, row: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, row, keepdims=False)
