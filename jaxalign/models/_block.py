"""One transformer layer: a Linen module, so a stateless description whose parameters are a plain tree."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.models._attention import attention
from jaxalign.models._cache import Cache
from jaxalign.models._config import ModelConfig

ACTIVATION_FUNCTIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
INIT_STD = 0.02


def norm_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one norm's parameters."""
    names = ("scale", "bias") if config.norm == "layer" else ("scale",)
    return dict.fromkeys(names, (config.width,))


def normalise(config: ModelConfig, parameters: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """Root-mean-square or layer norm, statistics in float32, result in the hidden states' dtype."""
    x = hidden.astype(jnp.float32)
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
    x = x * parameters["scale"].astype(jnp.float32)
    if config.norm == "layer":
        x = x + parameters["bias"].astype(jnp.float32)
    return x.astype(hidden.dtype)


def rotary_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """cos and sin of position / theta^(2i/K), float32 ``[B, T, 1, K/2]``; None with learned positions."""
    if config.position != "rotary":
        return None
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    angles = positions[..., None, None].astype(jnp.float32) / config.rope_theta**exponent
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding, half-split: pairs are (x_i, x_{i + K/2}); float32 inside. RoFormer (2104.09864), eq. 34."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1).astype(x.dtype)


class Block(nn.Module):
    """One pre-norm layer: x + attention(norm x), then x + mlp(norm x).

    Weights are stored (in, out), heads apart: query ``[D, H, K]``, key and value ``[D, G, K]``, output ``[H, K, D]``,
    gate and up ``[D, F]``, down ``[F, D]``.
    """

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        residual_std = INIT_STD / math.sqrt(2 * c.layers)  # GPT-2: the residual stream's variance stays of order one
        self.attention_norm = self._norm("attention_norm")
        self.mlp_norm = self._norm("mlp_norm")
        self.query = self._dense("query", (c.width, c.heads, c.head_dim), (c.heads, c.head_dim), c.attention_bias)
        self.key = self._dense("key", (c.width, c.kv_heads, c.head_dim), (c.kv_heads, c.head_dim), c.attention_bias)
        self.value = self._dense("value", (c.width, c.kv_heads, c.head_dim), (c.kv_heads, c.head_dim), c.attention_bias)
        self.output = self._dense("output", (c.heads, c.head_dim, c.width), (c.width,), c.attention_bias, residual_std)
        if c.gated_mlp:
            self.gate = self._dense("gate", (c.width, c.mlp_width), (c.mlp_width,), c.mlp_bias)
        self.up = self._dense("up", (c.width, c.mlp_width), (c.mlp_width,), c.mlp_bias)
        self.down = self._dense("down", (c.mlp_width, c.width), (c.width,), c.mlp_bias, residual_std)

    def _norm(self, name: str) -> dict[str, jax.Array]:
        def init(key: jax.Array) -> dict[str, jax.Array]:
            del key
            return init_norm(self.config)

        return self.param(name, init)

    def _dense(
        self, name: str, kernel: tuple[int, ...], bias: tuple[int, ...], has_bias: bool, std: float = INIT_STD
    ) -> dict[str, jax.Array]:
        def init(key: jax.Array) -> dict[str, jax.Array]:
            tree = {"kernel": std * jax.random.normal(key, kernel)}
            return tree | {"bias": jnp.zeros(bias)} if has_bias else tree

        return self.param(name, init)

    def __call__(
        self,
        hidden: jax.Array,
        tables: tuple[jax.Array, jax.Array] | None,
        visible: jax.Array,
        cache: Cache | None = None,
        layer: jax.Array | int = 0,
        column: jax.Array | int = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """The layer's output and, where a cache is given, the cache with this layer's keys and values written.

        Args:
            hidden: ``[B, T, D]`` in the compute dtype.
            tables: rotary cos and sin of the tokens' positions.
            visible: bool ``[B or 1, T, S]``; S = T without a cache, the cache's columns C with one.
            cache: keys and values of all layers; ``layer`` says which is this one's, ``column`` where to write.
        """
        config = self.config
        x = normalise(config, self.attention_norm, hidden)
        query = _project("btd,dhk->bthk", x, self.query)
        key = _project("btd,dhk->bthk", x, self.key)
        value = _project("btd,dhk->bthk", x, self.value)
        if tables is not None:
            query, key = rotate(query, tables), rotate(key, tables)
        if cache is not None:
            cache = cache.write(key, value, layer, column)
            key, value = cache.read(layer, query.dtype)
        hidden = hidden + _project("bthk,hkd->btd", attention(query, key, value, visible), self.output)

        x = normalise(config, self.mlp_norm, hidden)
        activation = ACTIVATION_FUNCTIONS[config.activation]
        up = _project("btd,df->btf", x, self.up)
        if config.gated_mlp:
            up = activation(_project("btd,df->btf", x, self.gate)) * up
        else:
            up = activation(up)
        return hidden + _project("btf,fd->btd", up, self.down), cache


def init_norm(config: ModelConfig) -> dict[str, jax.Array]:
    """A norm that is the identity on normalised inputs: scale 1, bias 0."""
    return {name: (jnp.zeros if name == "bias" else jnp.ones)(shape) for name, shape in norm_shapes(config).items()}


def _project(equation: str, x: jax.Array, parameters: dict[str, Any]) -> jax.Array:
    """x @ kernel (+ bias), parameters cast to x's dtype at use."""
    y = jnp.einsum(equation, x, parameters["kernel"].astype(x.dtype))
    return y + parameters["bias"].astype(x.dtype) if "bias" in parameters else y
