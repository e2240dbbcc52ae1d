"""Laying values out over the devices, of one process or of several."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

Index = tuple[slice, ...]


def shard_tree(tree: Any, shardings: Any) -> Any:
    """Lay a tree of arrays (host or device) out as ``shardings`` (a tree like it, or one sharding for all) says.

    On several processes every process passes the same host values, and keeps its shards. An array that already lies
    so is returned as it is, not copied: use ``jaxalign.training.copy_tree`` for a tree that must outlive a donated
    one.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        one = shardings
        return jax.tree.map(lambda leaf: _put(leaf, one), tree)
    return jax.tree.map(_put, tree, shardings)


def settle(tree: Any) -> Any:
    """Wait for what was dispatched, where another program must not run beside it: on the CPUs of several processes.

    There a program that depends on nothing in flight begins at once, and the two take each other's messages for their
    own. Accelerators run one program after the other, in the order of all processes; nothing waits there.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(tree)
    return tree


def make_from_shards(
    shape: tuple[int, ...], dtype: Any, sharding: Sharding | None, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """An array too large to hold on the host whole, put together shard by shard.

    Each distinct shard of this process's devices is read once, replicas included, and is on its devices before the next
    one is read. So one shard is on the host at a time, and every process reads only what its devices hold.

    Args:
        shape, dtype: of the whole array.
        sharding: how it lies; None = on the default device.
        read: from the place of a shard (a slice an axis) to its values, an array that nobody changes afterwards: a CPU
            device may use it as it is.
    """
    if sharding is None:
        return jax.device_put(read(tuple(slice(0, size) for size in shape)))
    places: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        place = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        places.setdefault(place, []).append(device)
    arrays: list[jax.Array] = []
    for place, devices in places.items():
        host = read(tuple(slice(start, stop) for start, stop in place))
        arrays += jax.block_until_ready([jax.device_put(host, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


def _put(leaf: Any, sharding: Sharding) -> jax.Array:
    """``jax.device_put`` onto devices of other processes too, which it refuses for typed keys and local arrays."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding == sharding:
            return leaf
        if not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put(np.asarray(jax.random.key_data(leaf)), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
