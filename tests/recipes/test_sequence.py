"""Rows split into pieces over devices, and other sharding rules: neither changes a result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign import data, models, recipes, sharding, training
from jaxalign.errors import InputError
from jaxalign.recipes._split import split_model
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.recipes.test_invariance import examples_of, pack_options, run
from tests.recipes.toy import assert_same_run
from tests.tolerances import FLOAT32

MESHES = {
    "sequence 4": "sequence=4",
    "data 2, sequence 2, tensor 2": "data=2,sequence=2,tensor=2",
    "fsdp 2, sequence 4": "fsdp=2,sequence=4",
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_it_does_not_depend_on(recipe, mesh):
    assert_same_run(run(recipe, "llama", mesh=MESHES[mesh]), run(recipe, "llama"))


SEVERAL = {
    "learned positions, packed": ("sft", "gpt2", {"mesh": "sequence=4", "packing": True}),
    "pairs, packed": ("dpo", "llama", {"mesh": "data=2,sequence=2", "packing": True}),
    "two rows a pair, cached reference": (
        "dpo", "llama", {"mesh": "sequence=4", "pair_layout": "two_rows", "cache_reference": True},
    ),
    "micro-batches, recomputed": ("dpo", "gpt2", {"mesh": "fsdp=2,sequence=2", "accumulation": 2, "remat": "full"}),
    "the plain kernel": ("sft", "llama", {"mesh": "data=2,sequence=2", "attention": "xla"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_it_does_not_depend_on_several_at_once(name):
    recipe, shape, options = SEVERAL[name]
    if options.get("packing"):
        options = options | pack_options(examples_of(recipe), 2)
    assert_same_run(run(recipe, shape, **options), run(recipe, shape))


def test_cached_activations_of_frozen_layers_lie_in_pieces():
    options = {"frozen_layers": 1, "cache_trunk": True, "mesh": "sequence=4"}
    assert_same_run(run("dpo", "llama", **options), run("dpo", "llama", frozen_layers=1))


@functools.cache
def rewards(**options):
    """(parameters, metrics) after three steps of plain SGD on ranked answers."""
    config, params = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(5))
    sgd = OptimizerConfig(optimizer="sgd", learning_rate=0.1)
    settings = recipes.FitConfig(**{"max_steps": 3, "batch_size": 3, "mesh": "data=1", "optimizer": sgd} | options)
    result = recipes.fit(
        config,
        params,
        toy.examples(toy.ranked_records()),
        lambda config: recipes.reward_objective(config, recipes.RewardObjective(centering=0.1)),
        settings,
        report=lambda *_: None,
    )
    return toy.leaves(result.params), result.metrics


@pytest.mark.parametrize(
    "options",
    [{"mesh": "sequence=4"}, {"mesh": "tensor=2,sequence=2", "pair_layout": "two_rows"}],
    ids=["shared prompts", "a row an answer"],
)
def test_reward_models_read_their_scores_from_whatever_piece_holds_them(options):
    (found, metrics), (expected, plain) = rewards(**options), rewards()
    assert plain["rewards/accuracy"] not in (0, 1)
    for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected"):
        np.testing.assert_allclose(metrics[name], plain[name], rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=FLOAT32, atol=FLOAT32 * np.abs(value).max(), err_msg=name)


def test_scores_of_examples_come_home_in_order():
    config, params = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(5))
    ranked, pairs = toy.examples(toy.ranked_records()), examples_of("dpo")
    split, whole = (sharding.parse_mesh(text) for text in ("data=2,sequence=4", "data=1"))
    for found, expected in zip(
        recipes.example_scores(config, params, ranked, mesh=split),
        recipes.example_scores(config, params, ranked, mesh=whole),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)
    language, tree = toy.SHAPES["gpt2"], toy.params("gpt2")
    for found, expected in zip(
        recipes.example_log_probs(language, tree, pairs, mesh=split),
        recipes.example_log_probs(language, tree, pairs, mesh=whole),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32)


# --- the table of sharding rules --------------------------------------------------------------------------------------

TURNED = ("vocab=fsdp", "heads=fsdp", "kv_heads=fsdp", "mlp=fsdp", "embed=tensor")
OWN_RULES = {
    "sides exchanged": {"mesh": "data=2,fsdp=2,tensor=2", "sharding_rules": TURNED},
    "parameters over pieces of rows too": {"mesh": "fsdp=2,sequence=4", "sharding_rules": ("embed=fsdp,sequence",)},
    "nothing is split": {"mesh": "fsdp=2", "sharding_rules": ("embed=", "vocab=", "heads=", "kv_heads=", "mlp=")},
}


@pytest.mark.parametrize("name", OWN_RULES)
def test_other_rules_change_no_result(name):
    assert_same_run(run("dpo", "llama", **OWN_RULES[name]), run("dpo", "llama"))


@pytest.mark.parametrize("lora", [0, 2])
def test_the_rules_say_where_everything_lies(lora):
    """Parameters, moments and frozen trees; a step leaves each where it was, its gradients having met it there."""
    config = recipes.FitConfig(
        mesh="data=2,fsdp=2,tensor=2", sharding_rules=TURNED, lora_rank=lora, frozen_layers=0 if lora else 1
    )
    mesh = sharding.parse_mesh(config.mesh)
    split = split_model(toy.SHAPES["llama"], toy.params("llama"), config, mesh)
    optimizer, _ = training.make_optimizer(OptimizerConfig(), 1)
    layout = training.state_shardings(split.trainable, optimizer, mesh=mesh, shardings=split.trainable_layout)
    state = training.create_state(
        split.trainable, optimizer, jax.random.key(0), mesh=mesh, shardings=split.trainable_layout
    )
    step = training.make_train_step(
        recipes.likelihood_objective(split.config).loss, optimizer, mesh=mesh, state_shardings=layout
    )
    batch = data.make_batches(examples_of("sft"), batch_size=8)[0]
    state, _ = step(state, {"base": split.base}, batch)
    moments = [
        found
        for found in jax.tree.leaves(state.optimizer_state, is_leaf=lambda x: isinstance(x, dict))
        if isinstance(found, dict)
    ]
    assert len(moments) == 2
    for tree in (state.params, *moments):
        for part, expected in (("up", ("tensor", "fsdp")), ("down", ("fsdp", "tensor"))):
            leaves = tree["stacks"]["0" if lora else "1"][part]
            if lora:
                assert leaves["lora_a"].sharding.spec == P(None, expected[0])
                assert leaves["lora_b"].sharding.spec == P(None, None, expected[1])
            else:
                assert leaves["kernel"].sharding.spec == P(None, *expected)
    assert split.base["embed"]["tokens"].sharding.spec == P("fsdp", "tensor")
    assert split.base["stacks"]["0"]["query"]["kernel"].sharding.spec == P(None, "tensor", "fsdp")
    assert isinstance(state.params["stacks"], dict)


def test_rules_that_make_no_table_are_refused_at_once():
    with pytest.raises(InputError, match="--sharding-rules embed=tensor: the mesh axis tensor would split one array"):
        recipes.FitConfig(sharding_rules=("embed=tensor",))


def test_rules_may_change_between_a_run_and_its_continuation(tmp_path):
    def fit(steps, folder, **options):
        sgd = OptimizerConfig(optimizer="sgd", learning_rate=0.1)
        config = recipes.FitConfig(max_steps=steps, batch_size=8, optimizer=sgd, **options)
        return recipes.fit(
            toy.SHAPES["llama"], toy.params("llama"), examples_of("sft"), recipes.likelihood_objective, config,
            directory=folder, report=lambda *_: None,
        )  # fmt: skip

    fit(2, tmp_path / "halves", mesh="fsdp=2,sequence=2", sharding_rules=("embed=fsdp,sequence",))
    found = fit(4, tmp_path / "halves", mesh="fsdp=2,tensor=2", sharding_rules=TURNED)
    expected = fit(4, tmp_path / "whole", mesh="data=1")
    assert found.step == 4
    for one, other in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=FLOAT32, atol=FLOAT32 * float(jnp.abs(other).max()))
