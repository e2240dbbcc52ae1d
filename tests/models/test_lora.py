"""Low-rank adapters: off is the base bit for bit, merged is unmerged, the gradient is the adapter's alone."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import models, sharding
from jaxalign.errors import InputError
from jaxalign.models._project import project
from tests.models.tiny import (
    GPT2,
    LLAMA,
    assert_trees_close,
    hidden_states,
    random_params,
    random_tokens,
    relative_error,
)
from tests.tolerances import FLOAT32

GOLDEN = Path(__file__).parent / "golden"
# One of every order of block, norm and attention; the parity tests with PEFT hold every family to this and more.
FOLDERS = ("llama_tied", "gpt2", "gpt_neox", "gptj", "opt_350m", "qwen3", "gemma2")
TOKENS = random_tokens(2, 7)
LORA = models.LoRA(rank=3, alpha=4.0)


def random_adapter(config, size=0.2):
    """An adapter whose B is not zero."""
    tree = models.init_lora(config, jax.random.key(2))
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    return structure.unflatten(
        [leaf + size * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


@functools.partial(jax.jit, static_argnums=0)
def log_probs(config, params, tokens):
    hidden = models.apply(config, params, tokens)
    sources = jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), (tokens.shape[0], tokens.shape[1] - 1))
    return models.target_log_probs(config, params, hidden, sources, tokens[:, 1:])


@pytest.mark.parametrize("name", FOLDERS)
def test_merged_is_unmerged(name):
    plain, base = models.load_pretrained(GOLDEN / name)
    config = plain.replace(lora=LORA)
    lora = random_adapter(config)
    merged = models.merge_lora(config, base, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(base)

    @jax.jit
    def both(adapted, merged):
        return models.apply(config, adapted, TOKENS), models.apply(plain, merged, TOKENS)

    found, expected = both(models.combine(lora, base), merged)
    assert relative_error(found, expected) <= FLOAT32
    assert relative_error(both(models.combine(lora, base), base)[1], expected) > 0.01  # the adapter does something


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_log_probs_with_the_adapter_off_are_the_bases_bit_for_bit(config):
    base = random_params(config)
    expected = log_probs(config, base, TOKENS)
    config = config.replace(lora=LORA)
    np.testing.assert_array_equal(log_probs(config, base, TOKENS), expected)
    # So are those of an adapter that has not learnt yet: it adds zeros.
    new = models.combine(models.init_lora(config, jax.random.key(0)), base)
    np.testing.assert_array_equal(log_probs(config, new, TOKENS), expected)
    assert np.any(log_probs(config, models.combine(random_adapter(config), base), TOKENS) != expected)


@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"lora": models.LoRA(2, 3.0, ("query",))}], ids=["remat", "query"]
)
def test_the_gradient_of_an_adapter_is_that_of_the_model_it_merges_to(changes):
    config = LLAMA.replace(**{"lora": LORA} | changes)
    _, base = models.restack(LLAMA, random_params(LLAMA), config.stacks)
    lora = random_adapter(config)

    def unmerged(lora):
        return jnp.square(models.apply(config, models.combine(lora, base), TOKENS)).sum()

    def merged(lora):
        plain = config.replace(lora=None, remat="none")
        return jnp.square(models.apply(plain, models.merge_lora(config, base, lora), TOKENS)).sum()

    found, expected = jax.jit(lambda lora: (jax.grad(unmerged)(lora), jax.grad(merged)(lora)))(lora)
    assert jax.tree.structure(found) == jax.tree.structure(lora)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(found))
    assert_trees_close(found, expected, FLOAT32)


@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_axes_and_shapes_are_the_kernels_own_and_the_rank(base):
    config = base.replace(stacks=(1, 2), lora=LORA)
    lora = jax.eval_shape(lambda: models.init_lora(config, jax.random.key(0)))
    axes = models.lora_axes(config)
    kernels = models.logical_axes(config)["stacks"]
    sizes = jax.eval_shape(lambda: models.init(config, jax.random.key(0)))["stacks"]
    assert set(lora) == {"stacks"}
    for name, stack in lora["stacks"].items():
        assert set(stack) == {part for part in sizes[name] if "kernel" in sizes[name][part]}
        for part, leaves in stack.items():
            inputs = 2 if part == "output" else 1
            kernel, shape = kernels[name][part]["kernel"], sizes[name][part]["kernel"].shape
            assert axes["stacks"][name][part] == {
                "lora_a": (*kernel[: 1 + inputs], "rank"), "lora_b": ("layers", "rank", *kernel[1 + inputs :]),
            }  # fmt: skip
            assert leaves["lora_a"].shape == (*shape[: 1 + inputs], 3)
            assert leaves["lora_b"].shape == (shape[0], 3, *shape[1 + inputs :])


def test_a_new_adapter_depends_on_the_key_the_layer_and_the_part_alone():
    whole = models.init_lora(LLAMA.replace(lora=LORA), jax.random.key(5))["stacks"]["0"]
    split = models.init_lora(LLAMA.replace(stacks=(1, 2), lora=LORA), jax.random.key(5))["stacks"]
    jax.tree.map(
        lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b]), c), split["0"], split["1"], whole
    )
    some = models.init_lora(
        LLAMA.replace(stacks=(1, 2), lora=models.LoRA(3, 1.0, ("gate|down", "value"), first_layer=1)),
        jax.random.key(5), dtype=jnp.bfloat16,
    )["stacks"]  # fmt: skip
    assert {name: set(stack) for name, stack in some.items()} == {"1": {"gate", "down", "value"}}
    for part, leaves in some["1"].items():
        np.testing.assert_array_equal(leaves["lora_a"], split["1"][part]["lora_a"].astype(jnp.bfloat16))
    flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves({part: whole[part]["lora_a"] for part in whole})]
    numbers = np.concatenate(flat)
    assert len(np.unique(numbers)) > 0.99 * numbers.size
    assert not any(np.any(whole[part]["lora_b"]) for part in whole)
    other = models.init_lora(LLAMA.replace(lora=LORA), jax.random.key(6))["stacks"]["0"]
    assert np.all(other["query"]["lora_a"] != whole["query"]["lora_a"])


def test_scale():
    assert models.LoRA(rank=16, alpha=8.0).scale == 0.5
    assert models.LoRA(rank=16, alpha=8.0, rank_stabilised=True).scale == 2.0
    parameters = {"kernel": jnp.zeros((5, 1)), "lora_a": jnp.ones((5, 2)), "lora_b": jnp.ones((2, 1))}
    for lora, expected in ((models.LoRA(4, 8.0), 20), (models.LoRA(4, 8.0, rank_stabilised=True), 40)):
        y = project(LLAMA.replace(lora=lora), "up", "btd,df->btf", jnp.ones((1, 1, 5)), parameters)
        assert y.item() == expected


def test_a_merged_kernel_may_be_wider_than_the_bases():
    """bfloat16 would round most of a small update away."""
    config = LLAMA.replace(lora=LORA)
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(LLAMA))
    lora = jax.tree.map(lambda leaf: 1e-2 * leaf, random_adapter(config))
    kernel = base["stacks"]["0"]["up"]["kernel"]
    narrow, wide = (models.merge_lora(config, base, lora, dtype=dtype) for dtype in (None, "float32"))
    assert narrow["stacks"]["0"]["up"]["kernel"].dtype == jnp.bfloat16
    assert wide["stacks"]["0"]["up"]["kernel"].dtype == jnp.float32
    up = lora["stacks"]["0"]["up"]
    expected = LORA.scale * np.einsum("ldr,lrf->ldf", *(np.asarray(up[x], np.float64) for x in ("lora_a", "lora_b")))
    found = np.asarray(wide["stacks"]["0"]["up"]["kernel"], np.float64) - np.asarray(kernel, np.float64)
    np.testing.assert_allclose(found, expected, atol=2 * np.finfo(np.float32).eps * float(np.abs(kernel).max()))
    assert wide["stacks"]["0"]["attention_norm"]["scale"] is base["stacks"]["0"]["attention_norm"]["scale"]


def test_cached_decoding_with_an_adapter_is_the_full_forward():
    config = LLAMA.replace(lora=LORA)
    params = models.combine(random_adapter(config), random_params(LLAMA))
    expected = hidden_states(config, params, TOKENS)
    prepared, cache = models.unstack(config, params), models.init_cache(config, *TOKENS.shape)
    found = []
    for column, length in ((0, 6), (6, 1)):
        positions = jnp.broadcast_to(jnp.arange(column, column + length), (2, length))
        visible = jnp.arange(TOKENS.shape[1]) <= positions[..., None]
        tokens = TOKENS[:, column : column + length]
        hidden, cache = models.extend(
            config, prepared, tokens, cache, column=column, positions=positions, visible=visible
        )
        found.append(hidden)
    assert relative_error(jnp.concatenate(found, axis=1), expected) <= FLOAT32


def test_a_mesh_changes_nothing():
    config = LLAMA.replace(lora=LORA)
    base, lora = random_params(LLAMA), random_adapter(config)
    tokens = random_tokens(4, 8)
    expected = hidden_states(config, models.combine(lora, base), tokens)
    mesh = sharding.parse_mesh("data=2,fsdp=2,tensor=2")
    layout = sharding.tree_shardings(models.lora_axes(config), lora, mesh)
    specs = {part: leaves["lora_a"].spec for part, leaves in layout["stacks"]["0"].items()}
    assert specs["query"] == jax.sharding.PartitionSpec(None, "fsdp")
    assert specs["down"] == jax.sharding.PartitionSpec(None, "tensor")
    placed = sharding.shard_tree(lora, layout)
    base = sharding.shard_tree(base, sharding.tree_shardings(models.logical_axes(config), base, mesh))
    with jax.set_mesh(mesh):
        found = jax.jit(models.apply, static_argnums=0)(config, models.combine(placed, base), tokens)
    assert relative_error(found, expected) <= FLOAT32
    assert_trees_close(
        models.merge_lora(config, base, placed), models.merge_lora(config, random_params(LLAMA), lora), FLOAT32
    )


# --- dropout ----------------------------------------------------------------------------------------------------------

DROPOUT = LLAMA.replace(lora=models.LoRA(3, 4.0, dropout=0.5))


def token_keys(*shape, seed=0):
    return jax.random.split(jax.random.key(seed), shape)


def test_dropout_zeroes_its_share_of_the_adapters_inputs_and_keeps_the_mean():
    """A = 1 a input and B = 1 an output: what comes out is the sum of what was not dropped."""
    parameters = {"kernel": jnp.zeros((400, 1)), "lora_a": jnp.ones((400, 1)), "lora_b": jnp.ones((1, 1))}
    config = DROPOUT.replace(lora=models.LoRA(1, 1.0, dropout=0.5))
    keys = token_keys(8, 25)
    y = project(config, "up", "btd,df->btf", jnp.ones((8, 25, 400)), parameters, keys)[..., 0]
    kept = np.asarray(y) / 2  # of 400; binomial
    np.testing.assert_array_equal(kept, np.round(kept))
    deviation = np.sqrt(400 * 0.5 * 0.5)
    assert abs(kept.mean() - 200) < 5 * deviation / np.sqrt(kept.size)
    assert kept.std() == pytest.approx(deviation, rel=0.25)
    other = project(config, "gate", "btd,df->btf", jnp.ones((8, 25, 400)), parameters, keys)[..., 0]
    assert np.mean(other == y) < 0.2
    np.testing.assert_array_equal(project(config, "up", "btd,df->btf", jnp.ones((8, 25, 400)), parameters), 400)


def test_dropout_is_a_tokens_own():
    params = models.combine(random_adapter(DROPOUT), random_params(LLAMA))
    keys = token_keys(*TOKENS.shape)
    expected = hidden_states(DROPOUT, params, TOKENS, dropout_keys=keys)
    np.testing.assert_array_equal(hidden_states(DROPOUT, params, TOKENS, dropout_keys=keys), expected)
    # Another token first in the other row: the batch-mate is as it was.
    mate = hidden_states(DROPOUT, params, TOKENS.at[0, 0].add(1), dropout_keys=keys.at[0].set(token_keys(7, seed=2)))
    np.testing.assert_array_equal(mate[1], expected[1])
    # Causal: another key of the last token changes the last token alone.
    moved = hidden_states(DROPOUT, params, TOKENS, dropout_keys=keys.at[:, -1].set(token_keys(2, seed=1)))
    np.testing.assert_array_equal(moved[:, :-1], expected[:, :-1])
    assert relative_error(moved[:, -1], expected[:, -1]) > 0.01
    assert relative_error(hidden_states(DROPOUT, params, TOKENS), expected) > 0.01


def test_dropout_depends_on_neither_stacks_nor_remat():
    params = models.combine(random_adapter(DROPOUT), random_params(LLAMA))
    keys = token_keys(*TOKENS.shape)
    expected = hidden_states(DROPOUT, params, TOKENS, dropout_keys=keys)
    config, params = models.restack(DROPOUT, params, (1, 2))
    found = hidden_states(config.replace(remat="full"), params, TOKENS, dropout_keys=keys)
    assert relative_error(found, expected) <= FLOAT32


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "LoRA.rank: must be at least 1, is 0"),
        ({"alpha": 0.0}, "LoRA.alpha: must be above 0"),
        ({"targets": ()}, "LoRA.targets: must be one or more"),
        ({"targets": ("query|(",)}, r"LoRA.targets: 'query\|\(' is not a regular expression"),
        ({"dropout": 1.0}, r"LoRA.dropout: must be in \[0, 1\)"),
        ({"first_layer": -1}, "LoRA.first_layer: must be at least 0"),
    ],
)
def test_an_adapter_that_makes_no_sense_names_the_field(changes, message):
    with pytest.raises(InputError, match=message):
        models.LoRA(**{"rank": 2, "alpha": 2.0} | changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA, "ModelConfig.lora"),
        (
            GPT2.replace(lora=models.LoRA(2, 2.0, ("query", "gate"))),
            "'gate' matches none of this model's parts: query,",
        ),
        (LLAMA.replace(lora=models.LoRA(2, 2.0, ("quer",))), "'quer' matches none"),
        (LLAMA.replace(lora=models.LoRA(2, 2.0, first_layer=1)), r"LoRA.first_layer: 1 is not where .* \(3,\) begins"),
    ],
)
def test_an_adapter_that_does_not_fit_the_model(config, message):
    with pytest.raises(InputError, match=message):
        models.init_lora(config, jax.random.key(0))


def test_an_adapter_of_another_model_is_refused():
    config = LLAMA.replace(lora=LORA)
    lora = random_adapter(config)
    gate = {"stacks": {"0": {"gate": lora["stacks"]["0"]["gate"]}}}
    with pytest.raises(InputError, match="no 'stacks/0/gate' to adapt"):
        models.merge_lora(config, random_params(GPT2), gate)
    wider = random_params(LLAMA.replace(mlp_width=48))
    with pytest.raises(InputError, match=r"stacks/0/down .*lora_a \(3, 40, 3\).* kernel \(3, 48, 24\)"):
        models.merge_lora(config, wider, {"stacks": {"0": {"down": lora["stacks"]["0"]["down"]}}})
