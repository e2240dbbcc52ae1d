"""Root-mean-square and layer norm, statistics in float32."""

import jax
import jax.numpy as jnp

from jaxalign.models._config import ModelConfig


def norm_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a norm of the residual stream."""
    names = ("scale", "bias") if config.norm == "layer" else ("scale",)
    return dict.fromkeys(names, (config.width,))


def init_norm(config: ModelConfig, size: int, *, of_heads: bool = False) -> dict[str, jax.Array]:
    """A norm that is the identity on normalised inputs: it multiplies by 1 and adds 0."""
    one = jnp.zeros if config.norm_unit_offset else jnp.ones
    scale = {"scale": one((size,))}
    return scale | {"bias": jnp.zeros((size,))} if config.norm == "layer" and not of_heads else scale


def normalise(config: ModelConfig, parameters: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """The model's norm over the last axis, inside in float32, result in the hidden states' dtype.

        rms    x / sqrt(mean x^2 + epsilon) * scale                          (arXiv 1910.07467)
        layer  (x - mean x) / sqrt(var x + epsilon) * scale + bias           (arXiv 1607.06450)

    With ``norm_unit_offset`` the factor is 1 + scale.
    """
    x = hidden.astype(jnp.float32)
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = _scaled(config, parameters, x)
    if config.norm == "layer":
        x = x + parameters["bias"].astype(jnp.float32)
    return x.astype(hidden.dtype)


def normalise_heads(config: ModelConfig, parameters: dict[str, jax.Array], heads: jax.Array) -> jax.Array:
    """The root-mean-square norm of every query or key head, ``[..., K]``."""
    return _scaled(config, parameters, heads.astype(jnp.float32)).astype(heads.dtype)


def _scaled(config: ModelConfig, parameters: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
    scale = parameters["scale"].astype(jnp.float32)
    return x * (1 + scale if config.norm_unit_offset else scale)
