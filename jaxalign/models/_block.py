"""One transformer layer: a Linen module, so a stateless description whose parameters are a plain tree."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxalign.models._attention import View, attention
from jaxalign.models._cache import Cache
from jaxalign.models._config import ModelConfig
from jaxalign.models._kernels import attend
from jaxalign.models._norm import init_norm, normalise, normalise_heads
from jaxalign.models._project import project
from jaxalign.models._rope import rotate

ACTIVATION_FUNCTIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
INIT_STD = 0.02


class Block(nn.Module):
    """One layer: attention and feed-forward around the residual stream in the order that ``config.block`` names.

    Weights are stored (in, out), heads apart: query ``[D, H, K]``, key and value ``[D, G, K]``, output ``[H, K, D]``,
    gate and up ``[D, F]``, down ``[F, D]``. Beside a kernel may lie a low-rank adapter, ``lora_a`` and ``lora_b``.
    """

    config: ModelConfig
    transposed: bool = False
    """Kernels are stored (out, in), as ``models.unstack`` prepares them for decoding."""

    def setup(self) -> None:
        c = self.config
        residual_std = INIT_STD / math.sqrt(2 * c.layers)  # GPT-2: the residual stream's variance stays of order one
        self.attention_norm = self._norm("attention_norm", c.width)
        if c.block != "parallel_one_norm":
            self.mlp_norm = self._norm("mlp_norm", c.width)
        if c.block == "sandwich_norm":
            self.attention_post_norm = self._norm("attention_post_norm", c.width)
            self.mlp_post_norm = self._norm("mlp_post_norm", c.width)
        self.query = self._dense("query", (c.width,), (c.heads, c.head_dim), c.attention_bias)
        self.key = self._dense("key", (c.width,), (c.kv_heads, c.head_dim), c.attention_bias)
        self.value = self._dense("value", (c.width,), (c.kv_heads, c.head_dim), c.attention_bias)
        self.output = self._dense("output", (c.heads, c.head_dim), (c.width,), c.attention_output_bias, residual_std)
        if c.qk_norm:
            self.query_norm = self._norm("query_norm", c.head_dim)
            self.key_norm = self._norm("key_norm", c.head_dim)
        if c.gated_mlp:
            self.gate = self._dense("gate", (c.width,), (c.mlp_width,), c.mlp_bias)
        self.up = self._dense("up", (c.width,), (c.mlp_width,), c.mlp_bias)
        self.down = self._dense("down", (c.mlp_width,), (c.width,), c.mlp_bias, residual_std)

    def _norm(self, name: str, size: int) -> dict[str, jax.Array]:
        def init(key: jax.Array) -> dict[str, jax.Array]:
            del key
            return init_norm(self.config, size, of_heads=name in ("query_norm", "key_norm"))

        return self.param(name, init)

    def _dense(
        self, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], has_bias: bool, std: float = INIT_STD
    ) -> dict[str, jax.Array]:
        def init(key: jax.Array) -> dict[str, jax.Array]:
            if self.transposed:
                tree = {"transposed": jnp.zeros((*outputs, *inputs))}
            else:
                tree = {"kernel": std * jax.random.normal(key, (*inputs, *outputs))}
            return tree | {"bias": jnp.zeros(outputs)} if has_bias else tree

        return self.param(name, init)

    def __call__(
        self,
        hidden: jax.Array,
        view: View,
        cache: Cache | None = None,
        layer: int = 0,
        column: jax.Array | int = 0,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The layer's output and, where a cache is given, the cache with this layer's keys and values written.

        Args:
            hidden: ``[B, T, D]`` in the compute dtype.
            view: rotary tables and visibility; its ``visible`` is ``[B or 1, T, S]``: S = T without a cache, the
                cache's columns C with one.
            cache: keys and values of all layers; ``layer`` says which is this one's, ``column`` where to write.
            dropout_keys: a typed key a token ``[B, T]``, this layer's own, for adapters with dropout; None = none.
        """
        config = self.config

        def attended(x: jax.Array) -> jax.Array:
            nonlocal cache
            query, key, value = (
                self._project(part, "btd,dhk->bthk", x, dropout_keys) for part in ("query", "key", "value")
            )
            if config.qk_norm:
                with jax.named_scope("query_norm"):
                    query = normalise_heads(config, self.query_norm, query)
                with jax.named_scope("key_norm"):
                    key = normalise_heads(config, self.key_norm, key)
            if view.tables is not None:
                query, key = rotate(query, view.tables), rotate(key, view.tables)
            if cache is None:
                with jax.named_scope("attention"):
                    mixed = attend(config, query, key, value, view)
            else:
                assert view.visible is not None
                cache = cache.write(key, value, layer, column)
                mixed = attention(
                    query,
                    cache.keys[layer],
                    cache.values[layer],
                    view.visible,
                    scale=config.attention_scale,
                    soft_cap=config.attention_soft_cap,
                )
            return self._project("output", "bthk,hkd->btd", mixed, dropout_keys)

        def fed_forward(x: jax.Array) -> jax.Array:
            activation = jax.named_scope("activation")(ACTIVATION_FUNCTIONS[config.activation])
            up = self._project("up", "btd,df->btf", x, dropout_keys)
            if config.gated_mlp:
                up = activation(self._project("gate", "btd,df->btf", x, dropout_keys)) * up
            else:
                up = activation(up)
            return self._project("down", "btf,fd->btd", up, dropout_keys)

        def norm(part: str, x: jax.Array) -> jax.Array:
            with jax.named_scope(part):
                return normalise(config, getattr(self, part), x)

        if config.block == "pre_norm":
            hidden = hidden + attended(norm("attention_norm", hidden))
            hidden = hidden + fed_forward(norm("mlp_norm", hidden))
        elif config.block == "post_norm":
            hidden = norm("attention_norm", hidden + attended(hidden))
            hidden = norm("mlp_norm", hidden + fed_forward(hidden))
        elif config.block == "sandwich_norm":
            hidden = hidden + norm("attention_post_norm", attended(norm("attention_norm", hidden)))
            hidden = hidden + norm("mlp_post_norm", fed_forward(norm("mlp_norm", hidden)))
        else:
            x = norm("attention_norm", hidden)
            y = x if config.block == "parallel_one_norm" else norm("mlp_norm", hidden)
            hidden = hidden + attended(x) + fed_forward(y)
        return hidden, cache

    def _project(self, part: str, equation: str, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        with jax.named_scope(part):
            return project(self.config, part, equation, x, getattr(self, part), dropout_keys)
