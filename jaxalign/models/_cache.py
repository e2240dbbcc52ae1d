"""Keys and values already computed: a pytree that a decoding loop carries and updates in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.models._config import ModelConfig


class Cache(NamedTuple):
    """Keys and values of every layer.

    Column c of row b holds one token of that row; which columns a query sees is the caller's ``visible`` mask, so rows
    may be ragged and columns may stay empty.
    """

    keys: jax.Array
    """``[L, B, C, G, K]``, rotary embedding already applied."""
    values: jax.Array
    """``[L, B, C, G, K]``."""

    def write(self, key: jax.Array, value: jax.Array, layer: jax.Array | int, column: jax.Array | int) -> "Cache":
        """The cache with ``[B, t, G, K]`` keys and values at columns ``column .. column + t`` of one layer."""
        start = (layer, 0, column, 0, 0)
        keys = jax.lax.dynamic_update_slice(self.keys, key[None].astype(self.keys.dtype), start)
        values = jax.lax.dynamic_update_slice(self.values, value[None].astype(self.values.dtype), start)
        return Cache(keys, values)

    def read(self, layer: jax.Array | int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """One layer's keys and values, ``[B, C, G, K]``."""
        keys = jax.lax.dynamic_index_in_dim(self.keys, layer, keepdims=False)
        values = jax.lax.dynamic_index_in_dim(self.values, layer, keepdims=False)
        return keys.astype(dtype), values.astype(dtype)


def init_cache(config: ModelConfig, batch: int, columns: int, dtype: jnp.dtype | str | None = None) -> Cache:
    """An empty cache for ``batch`` rows of at most ``columns`` tokens; dtype defaults to the compute dtype."""
    shape = (config.layers, batch, columns, config.kv_heads, config.head_dim)
    dtype = jnp.dtype(dtype or config.compute_dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
