"""Tiny models of every shape the decoder knows, and inputs for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import models

VOCABULARY = 37
LLAMA = models.ModelConfig(
    vocab_size=VOCABULARY, width=24, layers=3, heads=4, kv_heads=2, head_dim=6, mlp_width=40, max_positions=32,
    rope_theta=100.0,
)  # fmt: skip
GPT2 = models.ModelConfig(
    family="gpt2", vocab_size=VOCABULARY, width=24, layers=3, heads=4, kv_heads=4, head_dim=6, mlp_width=96,
    max_positions=32, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False, attention_bias=True,
    attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip
CONFIGS = {"llama": LLAMA, "llama_tied": LLAMA.replace(tied_embeddings=True), "gpt2": GPT2}


@functools.cache
def random_params(config: models.ModelConfig) -> dict:
    """Parameters well away from the initial ones, so that attention is not uniform and biases are not zero."""
    params = models.init(config, jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return treedef.unflatten(
        [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


def uncompiled_params(config: models.ModelConfig) -> dict:
    """Normal numbers of size 0.3 in every leaf, where compiling ``init`` would take longer than the test."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def random_tokens(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCABULARY, shape), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(config: models.ModelConfig, params: dict, tokens: jax.Array, **context: jax.Array) -> jax.Array:
    return models.apply(config, params, tokens, **context)


def relative_error(actual: jax.Array, expected: jax.Array) -> float:
    """Largest difference over the largest expected size."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    # Where zeros are expected, anything but zero is infinitely wrong.
    scale = max(np.max(np.abs(expected)), np.finfo(np.float64).tiny)
    return float(np.max(np.abs(actual - expected)) / scale)


def assert_trees_close(actual: object, expected: object, tolerance: float) -> None:
    """Leaf by leaf, relative to the leaf's size.

    A leaf that is zero but for rounding (below ``tolerance`` of the tree's largest number) need only be so again: such
    is the gradient of a key bias without rotary positions, softmax being blind to shifts.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))
    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True)
    for (path, leaf), other in pairs:
        assert np.shape(leaf) == np.shape(other), jax.tree_util.keystr(path)
        scale = float(np.max(np.abs(leaf)))
        scale = largest if scale <= tolerance * largest else scale
        error = float(np.max(np.abs(np.asarray(other) - np.asarray(leaf))))
        assert error <= tolerance * scale, f"{jax.tree_util.keystr(path)}: {error} of {scale}"
