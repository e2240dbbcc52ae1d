"""Entropy from hidden states: in slices and on a mesh what dense logits say, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from jaxalign import models, sharding
from jaxalign.losses import fused_token_entropy
from tests.models import tiny
from tests.tolerances import CHECK_GRADS_FLOAT64, FLOAT32

TOKENS, WIDTH, WORDS = 16, 8, 40
P = PartitionSpec
rng = np.random.default_rng(0)
HIDDEN, KERNEL = (rng.normal(size=(count, WIDTH)).astype("f4") for count in (TOKENS, WORDS))
BIAS, WEIGHTS = (rng.normal(size=count).astype("f4") for count in (WORDS, TOKENS))


def dense(hidden, kernel, bias, temperature=1.0):
    log_probs = jax.nn.log_softmax((hidden @ kernel.T + bias) / temperature)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, -1)


def close(found, wanted):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("chunk_size", [3, 64])
def test_gradients_are_the_dense_ones(chunk_size):
    def fused(hidden, kernel, bias):
        return jnp.vdot(WEIGHTS, fused_token_entropy(hidden, kernel, bias=bias, chunk_size=chunk_size, temperature=0.7))

    def plain(hidden, kernel, bias):
        return jnp.vdot(WEIGHTS, dense(hidden, kernel, bias, 0.7))

    close(*(jax.grad(form, (0, 1, 2))(HIDDEN, KERNEL, BIAS) for form in (fused, plain)))


def test_gradients_are_the_differences():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in (HIDDEN[:3], KERNEL)]
        tolerance = CHECK_GRADS_FLOAT64
        check_grads(lambda *a: fused_token_entropy(*a, chunk_size=2), arrays, 1, ["rev"], tolerance, tolerance)


def test_certainty_has_entropy_zero_and_a_finite_gradient():
    hidden = jnp.asarray([[1e4] + [0.0] * (WIDTH - 1)], jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: fused_token_entropy(x, jnp.asarray(KERNEL))[0])(hidden)
    assert value == 0
    assert jnp.isfinite(gradient).all()


def test_without_information_it_is_log_v():
    close(fused_token_entropy(jnp.zeros((2, WIDTH)), KERNEL), np.full(2, np.log(WORDS)))


@pytest.mark.parametrize(("data", "tensor"), [(8, 1), (1, 8), (2, 4)])
def test_a_sharded_vocabulary_changes_only_rounding(data, tensor):
    mesh = jax.make_mesh((data, tensor), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.shard_map(
        lambda hidden, kernel, bias: fused_token_entropy(
            hidden, kernel, bias=bias, chunk_size=3, vocabulary_axis="tensor"
        ),
        mesh=mesh,
        in_specs=(P("data"), P("tensor"), P("tensor")),
        out_specs=P("data"),
    )

    def both(form):
        def total(*arrays):
            value = form(*arrays)
            return jnp.vdot(WEIGHTS, value), value

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(HIDDEN, KERNEL, BIAS)

    close(both(spread), both(dense))


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
@pytest.mark.parametrize("mesh", [None, "data=2,fsdp=2,tensor=2", "tensor=8"])
def test_target_entropy_is_the_entropy_of_the_models_logits(name, mesh):
    """Whatever divides, and what does not: rows 4, vocabulary 37."""
    config, params = tiny.CONFIGS[name], tiny.random_params(tiny.CONFIGS[name])
    tokens = tiny.random_tokens(4, 9)
    hidden = tiny.hidden_states(config, params, tokens)
    index = jnp.asarray([[0, 3, 3, 8], [1, 2, 4, 5], [7, 6, 5, 0], [8, 8, 8, 8]])
    log_probs = jax.nn.log_softmax(models.unembed(config, params, hidden) / 0.7)
    every = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
    score = jax.jit(lambda p, h: models.target_entropy(config, p, h, index, temperature=0.7))
    if mesh is None:
        found = score(params, hidden)
    else:
        laid = sharding.parse_mesh(mesh)
        spread = sharding.shard_tree(params, sharding.tree_shardings(models.logical_axes(config), params, laid))
        with jax.set_mesh(laid):
            found = score(spread, hidden)
    close(found, jnp.take_along_axis(every, index, axis=1))
