"""Scores of given targets, on one device and on meshes of eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models, sharding
from tests.models.tiny import (
    CONFIGS,
    GPT2,
    LLAMA,
    assert_trees_close,
    hidden_states,
    random_params,
    random_tokens,
    relative_error,
)
from tests.tolerances import FLOAT32

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
# Sizes that divide every mesh, so that everything really is split.
WIDE = LLAMA.replace(vocab_size=40, width=16, heads=8, kv_heads=8, head_dim=4)


def _problem(config, length=9):
    tokens = random_tokens(8, length)
    source_index = jnp.asarray(np.random.default_rng(1).integers(0, length, (8, 5)))
    targets = random_tokens(8, 5, seed=2)
    weights = jnp.linspace(0.1, 1.0, 40).reshape(8, 5)

    def loss(params):
        hidden = models.apply(config, params, tokens)
        return (weights * models.target_log_probs(config, params, hidden, source_index, targets)).sum()

    return loss


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_log_softmax_at_the_sources(name, temperature):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    tokens = random_tokens(2, 3, 6)
    source_index = jnp.asarray(np.random.default_rng(1).integers(0, 6, (2, 3, 4)))
    targets = random_tokens(2, 3, 4, seed=2)
    hidden = hidden_states(config, params, tokens)
    scores = models.target_log_probs(config, params, hidden, source_index, targets, temperature=temperature)
    everything = jax.nn.log_softmax(models.unembed(config, params, hidden) / temperature)
    at_sources = jnp.take_along_axis(everything, source_index[..., None], axis=-2)
    expected = jnp.take_along_axis(at_sources, targets[..., None], axis=-1)[..., 0]
    assert scores.dtype == jnp.float32
    assert relative_error(scores, expected) <= FLOAT32


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("config", [WIDE, GPT2], ids=["divides", "does_not_divide"])
def test_a_mesh_gives_the_same_scores_and_gradients(shape, config):
    params = random_params(config)
    loss = _problem(config)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    mesh = sharding.make_mesh(*shape)
    shardings = sharding.tree_shardings(models.logical_axes(config), params, mesh)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss), in_shardings=(shardings,), out_shardings=(None, shardings))
        sharded_value, sharded_gradients = step(sharding.shard_tree(params, shardings))
    assert relative_error(sharded_value, value) <= FLOAT32
    assert_trees_close(sharded_gradients, gradients, FLOAT32)


@pytest.mark.parametrize("length", [16, 9], ids=["divides", "does_not_divide"])
@pytest.mark.parametrize("mesh", ["sequence=8", "fsdp=2,tensor=2,sequence=2"])
def test_sources_are_taken_from_whatever_piece_holds_them(mesh, length):
    """Five targets for eight or two pieces: what each device scores is filled up; gradients find their way back."""
    params, loss = random_params(WIDE), _problem(WIDE, length)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    laid = sharding.parse_mesh(mesh)
    shardings = sharding.tree_shardings(models.logical_axes(WIDE), params, laid)
    with jax.set_mesh(laid):
        split, ours = jax.jit(jax.value_and_grad(loss))(sharding.shard_tree(params, shardings))
    assert relative_error(split, value) <= FLOAT32
    assert_trees_close(ours, gradients, FLOAT32)


@pytest.mark.parametrize("shape", [(4, 16), (2, 3, 16)], ids=str)
def test_tokens_are_taken_from_whatever_piece_holds_them(shape):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(*shape, 6)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 16, (*shape[:-1], 5)))

    def run(hidden):
        taken = models.take_tokens(hidden, index)
        return jnp.sum(taken * jnp.arange(taken.size).reshape(taken.shape)), taken

    slope, expected = jax.grad(run, has_aux=True)(hidden)
    with jax.set_mesh(sharding.parse_mesh("data=2,sequence=4")):
        found_slope, found = jax.jit(jax.grad(run, has_aux=True))(hidden)
    np.testing.assert_array_equal(found, expected)
    assert relative_error(found_slope, slope) <= FLOAT32


def test_rows_that_do_not_divide_are_scored_all_the_same():
    params = random_params(WIDE)
    tokens, index, targets = random_tokens(3, 6), jnp.full((3, 2), 1), random_tokens(3, 2, seed=2)

    def score(params):
        return models.target_log_probs(WIDE, params, models.apply(WIDE, params, tokens), index, targets)

    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        sharded = jax.jit(score)(params)
    assert relative_error(sharded, jax.jit(score)(params)) <= FLOAT32


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_the_unembedding_gradient_is_reduced_once_and_not_per_chunk(shape):
    # Ten chunks of words (five where the vocabulary is split), so a reduction inside the walk would lie in its loop.
    words, width = 20_000, 16
    config = WIDE.replace(vocab_size=words, width=width)
    kernel = 0.1 * jax.random.normal(jax.random.key(0), (words, width))
    hidden = jax.random.normal(jax.random.key(1), (8, 6, width))
    index = jnp.zeros((8, 3), jnp.int32)
    targets = jnp.arange(24).reshape(8, 3)
    mesh = sharding.make_mesh(*shape)
    by_vocabulary = sharding.tree_shardings({"k": ("vocab", "embed")}, {"k": kernel}, mesh)["k"]

    def loss(kernel, hidden):
        return models.target_log_probs(config, {"unembed": {"kernel": kernel}}, hidden, index, targets).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(loss), in_shardings=(by_vocabulary, None), out_shardings=by_vocabulary)
        program = gradient.lower(kernel, hidden).compile().as_text()

    # Operands of the size of a device's unembedding, counted by the number of elements an instruction reduces.
    local = words * width // (mesh.shape["tensor"] * mesh.shape["fsdp"])
    reductions = re.findall(r"= f32\[([\d,]+)\][^\n]* (?:all-reduce|reduce-scatter)(?:-start)?\(", program)
    large = [shape for shape in reductions if np.prod([int(n) for n in shape.split(",")]) >= local]
    # One sum over data, and one reduce-scatter over fsdp where there is such an axis.
    assert len(large) == (2 if mesh.shape["fsdp"] > 1 else 1), large
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    assert bodies
    for name in bodies:
        text = re.search(rf"^%?{re.escape(name)} .*?^}}", program, re.M | re.S)
        assert text is not None
        assert "all-reduce" not in text.group()
        assert "reduce-scatter" not in text.group()
