"""Decoding with a cache gives what the full forward gives, for ragged prompts, in one call or many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from tests.models.tiny import CONFIGS, LLAMA, hidden_states, random_params, random_tokens, relative_error
from tests.tolerances import FLOAT32


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prepared", [True, False])
def test_cached_decode_equals_the_full_forward(name, prepared):
    config = CONFIGS[name].replace(stacks=(2, 1))
    _, params = models.restack(CONFIGS[name], random_params(CONFIGS[name]), (2, 1))
    lengths, steps = np.array([5, 2, 3]), 4
    width = lengths.max()
    tokens = random_tokens(3, width + steps)
    run = models.unstack(config, params) if prepared else params

    # Columns: the prompt, right-padded to the widest, then one column a step.
    columns = np.arange(width + steps)
    cache = models.init_cache(config, 3, width + steps)
    real = columns[None] < lengths[:, None]
    causal = columns[None, None] <= np.arange(width)[None, :, None]
    positions = np.broadcast_to(np.arange(width), (3, width))
    hidden, cache = jax.jit(models.extend, static_argnums=0)(
        config, run, tokens[:, :width], cache, column=0, positions=positions, visible=real[:, None] & causal
    )
    outputs = [hidden[np.arange(3), lengths - 1]]

    @jax.jit
    def step(cache, token, i):
        visible = real | ((columns >= width) & (columns <= width + i))
        positions = jnp.asarray(lengths + i)[:, None]
        return models.extend(
            config, run, token[:, None], cache, column=width + i, positions=positions, visible=visible[:, None]
        )

    for i in range(steps):
        hidden, cache = step(cache, tokens[:, width + i], i)
        outputs.append(hidden[:, 0])
    for row, length in enumerate(lengths):
        sequence = jnp.concatenate([tokens[row, :length], tokens[row, width:]])
        expected = hidden_states(config, params, sequence[None])[0, length - 1 :]
        assert relative_error(jnp.stack([output[row] for output in outputs]), expected) <= FLOAT32


def test_unstacking_casts_once_to_the_compute_dtype():
    config = LLAMA.replace(compute_dtype="bfloat16")
    prepared = models.unstack(config, random_params(LLAMA))
    assert len(prepared["blocks"]) == config.layers
    kernels = [leaf for leaf in jax.tree.leaves(prepared["blocks"]) if leaf.ndim > 1]
    assert kernels
    assert {leaf.dtype for leaf in kernels} == {jnp.dtype(jnp.bfloat16)}
    assert prepared["final_norm"]["scale"].dtype == jnp.float32, "norms are computed in float32, as in training"
    assert models.init_cache(config, 1, 2).keys[0].dtype == jnp.bfloat16


def test_the_cache_is_updated_in_place():
    # A copy of the cache at every step would need its size again as temporary memory.
    config = LLAMA
    params = models.unstack(config, random_params(config))
    batch, columns = 64, 256

    def decode(cache):
        def body(state):
            step, token, cache = state
            visible = jnp.broadcast_to(jnp.arange(columns) <= step, (batch, 1, columns))
            hidden, cache = models.extend(
                config, params, token, cache, column=step, positions=jnp.full((batch, 1), step), visible=visible
            )
            return step + 1, (hidden[..., 0] > 0).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda state: state[0] < 9, body, (0, jnp.zeros((batch, 1), jnp.int32), cache))

    cache = models.init_cache(config, batch, columns)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    compiled = jax.jit(decode, donate_argnums=0).lower(cache).compile()
    # One layer's keys and values may be laid out for the product; all layers' may not.
    assert compiled.memory_analysis().temp_size_in_bytes < size * (2 / config.layers)
