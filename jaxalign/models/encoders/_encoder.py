"""The encoder and its head as pure functions over a parameter tree.

params = {"embed": {"tokens" [V, D], "positions" [P, D] (, "types" [S, D]), "norm"},
          "stacks": {"0": {leaves [L, ...]:
              "query", "key", "value": {"kernel" [D, H, K], "bias" [H, K]},
              "output": {"kernel" [H, K, D], "bias" [D]},
              "attention_norm",
              "up": {"kernel" [D, F], "bias" [F]}, "down": {"kernel" [F, D], "bias" [D]},
              "mlp_norm"}},
          "head": {"dense": {"kernel" [D, D], "bias" [D]}, "output": {"kernel" [D, C], "bias" [C]}}}

A norm is {"scale" [D], "bias" [D]}.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.models._block import ACTIVATION_FUNCTIONS
from jaxalign.models.encoders._config import EncoderConfig

Params = dict[str, Any]
HEAD_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def encode(config: EncoderConfig, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states after the last layer; every token sees every real token of its row, in both directions.

    A row is one text, all of the first token type. Padding may lie anywhere in it and changes nothing: positions count
    the real tokens.

    Args:
        config: the model (static under ``jax.jit``).
        params: its parameters; their dtype is the activations', norms and softmax are float32.
        tokens: int ``[B, T]``.
        mask: bool ``[B, T]``, False = padding.

    Returns:
        ``[B, T, D]``. At padding some finite numbers; NaN in a row with an id outside the vocabulary or more real
        tokens than ``config.max_positions``.
    """
    mask = mask.astype(bool)
    embed = params["embed"]
    counted = mask if config.uncounted_token is None else mask & (tokens != config.uncounted_token)
    positions = jnp.where(counted, jnp.cumsum(counted, axis=-1) - 1, -1 if config.position_offset else 0)
    hidden = _look_up(embed["tokens"], tokens) + _look_up(embed["positions"], positions + config.position_offset)
    if config.token_types:
        hidden = hidden + embed["types"][0]
    hidden = _normalise(config, embed["norm"], hidden)

    def layer(hidden: jax.Array, parameters: Params) -> tuple[jax.Array, None]:
        return _layer(config, parameters, hidden, mask), None

    return jax.lax.scan(layer, hidden, params["stacks"]["0"])[0]


def encoder_logits(config: EncoderConfig, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits of the labels: activation(h W + b) W' + b', h the hidden state of a row's first real token.

    Arguments as in ``encode``. Returns float32 ``[B, C]``.
    """
    hidden = encode(config, params, tokens, mask)
    first = jnp.argmax(mask.astype(bool), axis=-1)
    hidden = jnp.take_along_axis(hidden, first[:, None, None], axis=1)[:, 0]
    head = params["head"]
    hidden = HEAD_ACTIVATIONS[config.head_activation](_project("bd,de->be", hidden, head["dense"]))
    return _project("bd,dc->bc", hidden.astype(jnp.float32), head["output"])


def _look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table; an id outside it gives NaN, not some other row."""
    return table.at[ids].get(mode="fill", fill_value=jnp.nan)


def _layer(config: EncoderConfig, parameters: Params, hidden: jax.Array, mask: jax.Array) -> jax.Array:
    query, key, value = (_project("btd,dhk->bthk", hidden, parameters[name]) for name in ("query", "key", "value"))
    mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
    mixed = _project("bthk,hkd->btd", mixed, parameters["output"])
    hidden = _normalise(config, parameters["attention_norm"], hidden + mixed)
    up = ACTIVATION_FUNCTIONS[config.activation](_project("btd,df->btf", hidden, parameters["up"]))
    return _normalise(config, parameters["mlp_norm"], hidden + _project("btf,fd->btd", up, parameters["down"]))


def _normalise(config: EncoderConfig, parameters: Params, hidden: jax.Array) -> jax.Array:
    """Layer norm, inside in float32, result in the hidden states' dtype."""
    x = hidden.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
    x = x * parameters["scale"].astype(jnp.float32) + parameters["bias"].astype(jnp.float32)
    return x.astype(hidden.dtype)


def _project(equation: str, x: jax.Array, parameters: Params) -> jax.Array:
    """x @ kernel + bias, parameters cast to x's dtype at use."""
    return jnp.einsum(equation, x, parameters["kernel"].astype(x.dtype)) + parameters["bias"].astype(x.dtype)
