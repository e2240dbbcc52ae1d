"""A checksum of every array of a tree, computed where the array lies."""

from typing import Any

import jax
import jax.numpy as jnp


def fingerprint(tree: Any) -> dict[str, int]:
    """Return ``{path: checksum}`` of the arrays of a tree.

    The checksum of an array with 32-bit words w_i is ``sum_i w_i * m_i mod 2^32``, m_i a product of one odd number for
    the place along each axis: integer sums do not depend on their order, so it is the same on every mesh, and as m_i
    is odd any change within one word changes it. It guards a checkpoint against a damaged disk, not against an
    adversary.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    sums = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    return {name: int(value) for name, value in zip(names, sums, strict=True)}


@jax.jit
def _checksums(leaves: list[Any]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        words = leaf.astype(jnp.uint32)
    elif leaf.dtype.itemsize < 4:
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    else:  # eight bytes become two words in a last axis
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
    # One axis after the other, the first first: no reshape, which would move a sharded array between devices, and the
    # order in which a CPU adds fastest.
    for axis, size in enumerate(words.shape):
        counter = jax.lax.iota(jnp.uint32, size)
        multiplier = counter * jnp.uint32(0x9E3779B2) + jnp.uint32(2 * axis + 1)  # odd, all different
        words = jnp.sum(words * multiplier.reshape(-1, *(1,) * (words.ndim - 1)), axis=0, dtype=jnp.uint32)
    return words
