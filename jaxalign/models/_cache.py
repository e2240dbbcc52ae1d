"""Keys and values already computed: a pytree that a decoding loop carries and updates in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.models._config import ModelConfig


class Cache(NamedTuple):
    """Keys and values, one pair of arrays a layer, heads before columns.

    Column c of row b holds one token of that row; which columns a query sees is the caller's ``visible`` mask, so rows
    may be ragged and columns may stay empty. A layer's arrays are products' operands as they lie: one array for all
    layers, or columns before heads, would be sliced or transposed into a copy at every step.
    """

    keys: tuple[jax.Array, ...]
    """L times ``[B, G, C, K]``, rotary embedding already applied."""
    values: tuple[jax.Array, ...]
    """L times ``[B, G, C, K]``."""
    positions: jax.Array
    """int32 ``[B, C]``, the tokens' positions: what a sliding window is measured by."""

    @property
    def columns(self) -> int:
        """C."""
        return self.keys[0].shape[2]

    def write(self, key: jax.Array, value: jax.Array, layer: int, column: jax.Array | int) -> "Cache":
        """The cache with ``[B, t, G, K]`` keys and values at columns ``column .. column + t`` of one layer."""

        def put(leaves: tuple[jax.Array, ...], new: jax.Array) -> tuple[jax.Array, ...]:
            old = leaves[layer]
            new = jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2).astype(old.dtype), (0, 0, column, 0))
            return (*leaves[:layer], new, *leaves[layer + 1 :])

        return self._replace(keys=put(self.keys, key), values=put(self.values, value))

    def place(self, positions: jax.Array, column: jax.Array | int) -> "Cache":
        """The cache with the positions ``[B, t]`` of the tokens at columns ``column .. column + t``."""
        new = jax.lax.dynamic_update_slice(self.positions, positions.astype(self.positions.dtype), (0, column))
        return self._replace(positions=new)

    def from_column(self, column: int) -> "Cache":
        """The columns from ``column`` on."""
        keys, values = (tuple(leaf[:, :, column:] for leaf in leaves) for leaves in (self.keys, self.values))
        return Cache(keys, values, self.positions[:, column:])

    def replace_from(self, column: int, columns: "Cache") -> "Cache":
        """The cache with ``columns`` from ``column`` on; dtypes stay."""

        def put(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), column, axis)

        keys = tuple(map(lambda old, new: put(old, new, 2), self.keys, columns.keys))
        values = tuple(map(lambda old, new: put(old, new, 2), self.values, columns.values))
        return Cache(keys, values, put(self.positions, columns.positions, 1))

    def broadcast(self, rows: int) -> "Cache":
        """A cache of one row, for ``rows`` rows."""
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), self)

    def widen(self, columns: int) -> "Cache":
        """The cache with ``columns`` more, empty columns at its end."""
        by_layer = ((0, 0), (0, 0), (0, columns), (0, 0))
        keys, values = (tuple(jnp.pad(leaf, by_layer) for leaf in leaves) for leaves in (self.keys, self.values))
        return Cache(keys, values, jnp.pad(self.positions, ((0, 0), (0, columns))))


def init_cache(config: ModelConfig, batch: int, columns: int, dtype: jnp.dtype | str | None = None) -> Cache:
    """An empty cache for ``batch`` rows of at most ``columns`` tokens; dtype defaults to the compute dtype."""
    shape = (batch, config.kv_heads, columns, config.head_dim)
    dtype = jnp.dtype(dtype or config.compute_dtype)
    keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)) for _ in range(2))
    return Cache(keys, values, jnp.zeros((batch, columns), jnp.int32))
