"""Laying values out over the devices, of one process or of several."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding


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
