"""Choices that may not change the numbers: stacks, rematerialisation, freezing; and one that may a little: bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models
from jaxalign.errors import InputError
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
from tests.tolerances import BFLOAT16, FLOAT32


@pytest.mark.parametrize("name", CONFIGS)
def test_axes_name_every_dimension(name):
    config = CONFIGS[name].replace(stacks=(1, 2))
    params = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))
    axes = models.logical_axes(config)
    jax.tree.map(lambda leaf, names: np.testing.assert_equal(leaf.ndim, len(names)), params, axes)
    sizes = {
        "vocab": config.vocab_size, "embed": config.width, "heads": config.heads, "kv_heads": config.kv_heads,
        "head_dim": config.head_dim, "mlp": config.mlp_width, "positions": config.max_positions, "norm": config.width,
    }  # fmt: skip

    def check(leaf: jax.Array, names: tuple[str, ...]) -> None:
        for size, axis in zip(leaf.shape, names, strict=True):
            assert axis == "layers" or size == sizes[axis]

    jax.tree.map(check, params, axes)


def test_init_does_not_depend_on_the_stacks():
    config = LLAMA
    whole = models.init(config, jax.random.key(3))
    split = models.init(config.replace(stacks=(2, 1)), jax.random.key(3))
    _, joined = models.restack(config.replace(stacks=(2, 1)), split, (3,))
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
    half = jax.eval_shape(lambda: models.init(config, jax.random.key(3), dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stacks", [(1, 2), (2, 1), (1, 1, 1)])
def test_stacks_change_nothing(name, stacks):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    split_config, split = models.restack(config, params, stacks)
    tokens = random_tokens(2, 7)
    expected = hidden_states(config, params, tokens)
    assert relative_error(hidden_states(split_config, split, tokens), expected) <= FLOAT32
    assert split_config.stacks == stacks


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat):
    params, tokens = random_params(LLAMA), random_tokens(2, 7)

    def loss(params, config):
        return jnp.square(models.apply(config, params, tokens)).sum()

    plain = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, LLAMA)
    again = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, LLAMA.replace(remat=remat))
    assert_trees_close(again[1], plain[1], FLOAT32)
    assert relative_error(again[0], plain[0]) <= FLOAT32


def test_full_remat_saves_fewer_residuals():
    params, tokens = random_params(LLAMA), random_tokens(4, 16)

    def residuals(config):
        saved = jax.eval_shape(lambda p: jax.vjp(lambda q: models.apply(config, q, tokens), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    assert residuals(LLAMA.replace(remat="full")) < residuals(LLAMA.replace(remat="dots")) < residuals(LLAMA)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_close(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    # Unit-size residual branches: the tolerance is for values of order one, not for amplified ones.
    params = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    tokens = random_tokens(2, 7)
    expected = hidden_states(config, params, tokens)
    low = hidden_states(config.replace(compute_dtype="bfloat16"), params, tokens)
    assert low.dtype == jnp.bfloat16
    assert relative_error(low, expected) <= 2 * BFLOAT16


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_freezing_splits_and_combines(name, layers):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    tokens = random_tokens(2, 7)
    frozen_config, trainable, frozen = models.freeze(config, params, layers)
    whole = models.combine(trainable, frozen)
    expected = hidden_states(config, params, tokens)
    assert relative_error(hidden_states(frozen_config, whole, tokens), expected) <= FLOAT32
    assert sum(leaf.size for leaf in jax.tree.leaves((trainable, frozen))) == sum(
        leaf.size for leaf in jax.tree.leaves(params)
    )
    if layers == 0:
        assert frozen == {}
    else:
        assert set(frozen) == {"embed", "stacks"}
        cached = models.trunk(frozen_config, frozen, tokens)
        assert relative_error(hidden_states(frozen_config, trainable, tokens, trunk=cached), expected) <= FLOAT32


def test_frozen_layers_keep_nothing_for_the_backward_pass():
    config, trainable, frozen = models.freeze(LLAMA, random_params(LLAMA), 2)
    only_top = LLAMA.replace(layers=1)
    tokens = random_tokens(4, 16)

    def saved(function, argument):
        residuals = jax.eval_shape(lambda p: jax.vjp(function, p)[1], argument)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    def top_alone(p):
        return models.apply(only_top, {**p, "embed": frozen["embed"]}, tokens)

    alone = saved(top_alone, {**trainable, "stacks": {"0": trainable["stacks"]["1"]}})
    with_frozen = saved(lambda p: models.apply(config, models.combine(p, frozen), tokens), trainable)
    assert with_frozen == alone


def test_trunk_gradients_are_the_same_cached_or_not():
    config, trainable, frozen = models.freeze(LLAMA, random_params(LLAMA), 2)
    tokens = random_tokens(2, 7)
    example = jnp.ones_like(tokens).at[1, 4:].set(0)

    def recomputed(p):
        hidden = models.apply(config, models.combine(p, frozen), tokens, example=example)
        return jnp.where(example[..., None] > 0, hidden, 0).var()

    cached = models.trunk(config, frozen, tokens, example=example)

    def continued(p):
        hidden = models.apply(config, p, tokens, example=example, trunk=cached)
        return jnp.where(example[..., None] > 0, hidden, 0).var()

    assert_trees_close(jax.jit(jax.grad(continued))(trainable), jax.jit(jax.grad(recomputed))(trainable), FLOAT32)


def test_combine_refuses_an_overlap():
    with pytest.raises(ValueError, match="'a/b'"):
        models.combine({"a": {"b": jnp.ones(1)}}, {"a": {"b": jnp.ones(1)}})


def test_logits_are_the_unembedded_hidden_states():
    for config in (LLAMA, GPT2):
        params, tokens = random_params(config), random_tokens(2, 5)
        matrix = params["embed"]["tokens"] if config.tied_embeddings else params["unembed"]["kernel"]
        expected = hidden_states(config, params, tokens) @ matrix.T
        logits = jax.jit(models.logits, static_argnums=0)(config, params, tokens)
        assert relative_error(logits, expected) <= FLOAT32


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"norm": "batch"}, "norm"),
        ({"remat": "some"}, "remat"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"stacks": (1, 1)}, "stacks"),
        ({"stacks": (3, 0)}, "stacks"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"compute_dtype": "float16"}, "compute_dtype"),
    ],
)
def test_a_config_that_contradicts_itself_names_the_field(change, field):
    with pytest.raises(InputError, match=f"ModelConfig.{field}"):
        LLAMA.replace(**change)


@pytest.mark.parametrize("layers", [-1, 4])
def test_freezing_more_than_there_is(layers):
    with pytest.raises(InputError, match="frozen layers"):
        models.freeze(LLAMA, random_params(LLAMA), layers)


def test_a_config_is_a_static_argument():
    again = LLAMA.replace(rope_theta=LLAMA.rope_theta)
    assert again is not LLAMA
    assert again == LLAMA
    assert hash(again) == hash(LLAMA)
    assert LLAMA.replace(layers=5).stacks == (5,)


def test_gradients_of_kernels_are_float32_sums_under_bfloat16():
    """On a mesh too: what the devices add up is float32, so that many devices lose no more than one."""
    from jaxalign.sharding import make_mesh, shard_tree, tree_shardings

    config = LLAMA.replace(compute_dtype="bfloat16")
    params, tokens = random_params(LLAMA), random_tokens(4, 16)

    def loss(params):
        return jnp.square(models.apply(config, params, tokens).astype(jnp.float32)).mean()

    mesh = make_mesh(data=2, fsdp=2, tensor=1)
    layout = tree_shardings(models.logical_axes(config), params, mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss), out_shardings=layout).lower(shard_tree(params, layout)).compile()
        gradients = compiled(shard_tree(params, layout))
    sums = [line for line in compiled.as_text().splitlines() if " all-reduce(" in line or " reduce-scatter(" in line]
    assert sums
    assert not [line for line in sums if "bf16[" in line]
    for part in ("query", "key", "value", "output", "gate", "up", "down"):
        kernel = gradients["stacks"]["0"][part]["kernel"]
        assert (kernel != kernel.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9, part
