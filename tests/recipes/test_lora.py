"""Training an adapter, and freezing by name: what moves, what is held, what must not change a result."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data, models, recipes, sharding, training
from jaxalign.errors import InputError
from jaxalign.recipes._objective import frozen_trunk
from jaxalign.recipes._split import split_model
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.recipes.toy import Run, assert_same_run
from tests.tolerances import FLOAT32

CONFIG = toy.SHAPES["llama"]
ADAPTER = {"lora_rank": 2, "lora_alpha": 8.0}
LEARNING_RATE = 0.05
DROPOUT = {**ADAPTER, "lora_dropout": 0.25}


@functools.cache
def pairs():
    return toy.examples(toy.pair_records())


@functools.cache
def demonstrations():
    return toy.examples(toy.demonstrations())


def dpo(config):
    return recipes.preference_objective(config, recipes.PreferenceObjective(beta=0.5))


def fit(examples=None, *, objective=dpo, start=None, **changes):
    more = {name: changes.pop(name) for name in list(changes) if name in (
        "directory", "eval_examples", "evaluate", "reference", "cache_reference",
    )}  # fmt: skip
    config = recipes.FitConfig(**{
        "max_steps": 2, "batch_size": 8, "mesh": "data=1", "optimizer": OptimizerConfig(learning_rate=1e-2),
    } | changes)  # fmt: skip
    start = toy.params("llama") if start is None else start
    examples = pairs() if examples is None else examples
    return recipes.fit(CONFIG, start, examples, objective, config, report=lambda *_: None, **more)


def bits(tree):
    return [(leaf.dtype, leaf.tobytes()) for leaf in map(np.asarray, jax.tree.leaves(tree))]


@functools.cache
def run(recipe: str, **options) -> Run:
    examples, objective = (pairs(), dpo) if recipe == "dpo" else (demonstrations(), recipes.likelihood_objective)
    return toy.train("llama", examples, objective, **{"learning_rate": LEARNING_RATE} | options)


@pytest.fixture
def looped(monkeypatch):
    """What the loop was given and gave back."""
    seen = {}
    loop = training.run_loop

    def spy(step, state, batches, **more):
        seen["frozen"] = more["frozen"]
        seen["result"] = loop(step, state, batches, **more)
        return seen["result"]

    monkeypatch.setattr(training, "run_loop", spy)
    return seen


# --- an adapter -------------------------------------------------------------------------------------------------------


def test_the_first_loss_is_ln_2():
    result = fit(max_steps=1, frozen_layers=1, **DROPOUT)
    assert result.metrics["loss"] == pytest.approx(math.log(2), abs=FLOAT32)
    assert result.metrics["rewards/margin"] == pytest.approx(0, abs=FLOAT32)
    assert result.metrics["grad_norm"] > 0.01


def test_the_base_is_the_reference_and_is_held_once(looped):
    start = jax.tree.map(jnp.array, toy.params("llama"))
    before = bits(start)
    result = fit(start=start, **ADAPTER)
    assert looped["frozen"]["reference"] == {}
    held = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(looped["frozen"]["base"])]
    assert held == [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(start)]
    assert bits(start) == before
    assert result.metrics["loss"] < math.log(2)


def test_only_the_adapter_trains_and_has_an_optimizer_state(looped):
    result = fit(lora_targets=("query|down",), **ADAPTER)
    state = looped["result"].state
    shapes = {"query": [(3, 16, 2), (3, 2, 4, 8)], "down": [(3, 32, 2), (3, 2, 16)]}
    assert set(state.params) == {"stacks"}
    found = {part: [leaf.shape for leaf in jax.tree.leaves(tree)] for part, tree in state.params["stacks"]["0"].items()}
    assert found == shapes
    trained = sorted(shape for part in shapes.values() for shape in part)
    moments = [leaf.shape for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim]
    assert sorted(moments) == sorted(trained * 2)
    # The result: the adapter, and the model it merges to, of which only the adapted kernels are others than at first.
    assert bits(result.lora) == bits(state.params)
    assert result.lora_config.lora == models.LoRA(2, 8.0, ("query|down",))
    assert result.config == CONFIG
    assert bits(result.params) == bits(models.merge_lora(result.lora_config, toy.params("llama"), result.lora))
    before, after = toy.leaves(toy.params("llama")), toy.leaves(result.params)
    moved = {name for name in before if np.any(before[name] != after[name])}
    assert moved == {f"['stacks']['0']['{part}']['kernel']" for part in shapes}


def test_training_an_adapter_is_gradient_descent_on_the_merged_model():
    """By hand, through ``merge_lora``: nothing of the adapted forward is used."""
    found = run("sft", **ADAPTER)
    config = CONFIG.replace(lora=models.LoRA(2, 8.0))
    split = split_model(CONFIG, toy.params("llama"), recipes.FitConfig(**ADAPTER), _mesh())
    objective = recipes.likelihood_objective(CONFIG)
    batch = data.make_batches(demonstrations(), batch_size=8, num_epochs=1, shuffle=False)[0]

    @jax.jit
    def step(lora):
        def loss(lora):
            merged = models.merge_lora(config, toy.params("llama"), lora)
            terms, _ = objective.loss(merged, {"base": {}, "reference": {}}, batch, jax.random.key(0), {})
            ((value, weight, _),) = terms.values()
            return value / weight

        value, gradient = jax.value_and_grad(loss)(lora)
        return value, jax.tree.map(lambda leaf, slope: leaf - LEARNING_RATE * slope, lora, gradient)

    lora = split.trainable
    for expected in found.losses:
        value, lora = step(lora)
        assert value == pytest.approx(expected, rel=FLOAT32)
    merged = toy.leaves(models.merge_lora(config, toy.params("llama"), lora))
    for name, value in merged.items():
        np.testing.assert_allclose(found.params[-1][name], value, atol=FLOAT32 * np.abs(value).max(), err_msg=name)


def _mesh():
    return sharding.parse_mesh("data=1")


VARIANTS = {
    "micro-batches, two rows a pair, mesh, full remat": {
        "accumulation": 2, "pair_layout": "two_rows", "mesh": "data=2,tensor=2", "remat": "full",
    },
    "packed": {"packing": True, "row_length": 64},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_with_dropout_does_not_depend_on(variant):
    options = dict(VARIANTS[variant])
    if "packing" in options:
        found = run("dpo", **DROPOUT, **options, batch_size=_rows(options["row_length"]))
    else:
        found = run("dpo", **DROPOUT, **options)
    expected = run("dpo", **DROPOUT)
    assert_same_run(found, expected)


def _rows(length):
    """Into how many rows all pairs are packed, in every epoch."""
    for rows in range(1, 9):
        plan = data.make_batches(pairs(), batch_size=rows, pack=True, max_length=length).plan
        if all(len(plan.epoch(epoch)) == rows for epoch in range(toy.STEPS)):
            return rows
    raise AssertionError("another row length is needed")


def test_dropout_does_something_to_training_and_nothing_to_evaluation(tmp_path):
    result = fit(max_steps=2, eval_every=1, eval_examples=pairs(), directory=tmp_path, **DROPOUT)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    evaluated = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    # The same pairs under the same parameters, those that step 1 left.
    assert abs(losses[2] - evaluated[1]) > 1e-3
    batch = data.make_batches(pairs(), batch_size=8, num_epochs=1, shuffle=False)[0]
    frozen = {"base": {}, "reference": toy.params("llama")}
    terms, _ = jax.jit(dpo(CONFIG).loss)(result.params, frozen, batch, jax.random.key(0), {})
    assert evaluated[2] == pytest.approx(float(training.weighted_total(terms)), rel=FLOAT32)


def test_above_frozen_layers_a_cached_trunk_and_reference_change_nothing():
    found = run("dpo", frozen_layers=1, cache_trunk=True, cache_reference=True, **ADAPTER)
    assert_same_run(found, run("dpo", frozen_layers=1, **ADAPTER))
    for name, before in found.params[0].items():
        moved = found.params[-1][name] != before
        assert np.any(moved) == ("kernel" in name and "stacks" in name), name
        assert not ("stacks" in name and np.any(moved[0]))


def test_two_halves_are_the_whole_bit_for_bit(tmp_path):
    whole = fit(max_steps=4, batch_size=4, directory=tmp_path / "whole", **DROPOUT)
    fit(max_steps=2, batch_size=4, directory=tmp_path / "halves", **DROPOUT)
    again = fit(max_steps=4, batch_size=4, directory=tmp_path / "halves", **DROPOUT)
    assert again.step == 4
    assert bits(again.lora) == bits(whole.lora)
    assert bits(again.params) == bits(whole.params)
    with pytest.raises(InputError, match=r"--lora-alpha is 9\.0, but .* was started with 8\.0"):
        fit(max_steps=4, batch_size=4, directory=tmp_path / "halves", **DROPOUT | {"lora_alpha": 9.0})


def test_a_reference_that_becomes_the_policy_is_an_adapter_too(tmp_path):
    def moving(config):
        objective = recipes.PreferenceObjective(beta=0.5)
        return recipes.preference_objective(config, objective, reference_update_every=2, reference_update_rate=1.0)

    result = fit(objective=moving, max_steps=3, directory=tmp_path, **ADAPTER)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    margins = [row["rewards/margin"] for row in rows]
    assert abs(margins[0]) <= FLOAT32
    assert margins[1] > 0.01
    assert abs(margins[2]) <= FLOAT32
    assert result.lora is not None


def test_the_saved_adapter_and_the_merged_model_are_one_model(tmp_path):
    result = fit(**ADAPTER)
    models.save_adapter(tmp_path, result.lora_config, result.lora, base_name="base")
    config, lora = models.load_adapter(tmp_path, CONFIG)
    assert bits(models.merge_lora(config, toy.params("llama"), lora)) == bits(result.params)


def test_a_bfloat16_base_loses_nothing_of_the_adapter():
    result = fit(frozen_dtype="bfloat16", dtype="bfloat16", lora_targets=("up",), **ADAPTER)
    up = result.params["stacks"]["0"]["up"]["kernel"]
    assert up.dtype == jnp.float32
    assert result.params["stacks"]["0"]["down"]["kernel"].dtype == jnp.bfloat16
    base = toy.params("llama")["stacks"]["0"]["up"]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    leaves = result.lora["stacks"]["0"]["up"]
    update = 4 * jnp.einsum("ldr,lrf->ldf", leaves["lora_a"], leaves["lora_b"])
    np.testing.assert_allclose(up - base, update, atol=FLOAT32 * float(jnp.abs(base).max()))


# --- freezing by name -------------------------------------------------------------------------------------------------


def test_frozen_embeddings_and_parameters_stay_and_have_no_optimizer_state(looped):
    result = fit(frozen_embeddings=True, frozen_parameters=("stacks/0/.*_norm/.*", ".*/(gate|up|down)/.*"))
    before, after = toy.leaves(toy.params("llama")), toy.leaves(result.params)
    moved = {name for name in before if np.any(before[name] != after[name])}
    trained = {f"['stacks']['0']['{part}']['kernel']" for part in ("query", "key", "value", "output")}
    assert moved == trained | {"['final_norm']['scale']"}
    state = looped["result"].state
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim]
    assert len(moments) == 2 * len(moved)
    # The reference shares what does not train.
    assert jax.tree.structure(looped["frozen"]["reference"]) == jax.tree.structure(state.params)


@pytest.mark.parametrize(
    ("options", "is_frozen"),
    [
        ({"frozen_layers": 1}, True),
        ({"frozen_layers": 3}, True),
        ({"frozen_layers": 1, "frozen_parameters": ("stacks/1/mlp_norm/.*",)}, True),
        ({"frozen_parameters": ("embed/.*", "stacks/0/.*")}, True),
        ({"frozen_layers": 2, **ADAPTER}, True),
        ({}, False),
        (ADAPTER, False),
        ({"lora_targets": ("down",), **ADAPTER}, False),
        ({"frozen_embeddings": True}, False),
        ({"frozen_parameters": ("stacks/0/.*",)}, False),
        ({"frozen_parameters": ("embed/.*", "stacks/0/[^m].*")}, False),
    ],
)
def test_the_trunk_is_frozen_where_nothing_trains_under_it(options, is_frozen):
    split = split_model(CONFIG, toy.params("llama"), recipes.FitConfig(**options), _mesh())
    batch = data.make_batches(pairs(), batch_size=8, num_epochs=1, shuffle=False)[0]
    trunk = jax.eval_shape(lambda own: frozen_trunk(split.config, own, {"base": split.base}, batch), split.trainable)
    assert (trunk is not None) == is_frozen


def test_activations_of_layers_that_train_are_refused():
    config, _, base = models.freeze(CONFIG, toy.params("llama"), 1)
    carrying = recipes.attach_trunk(config, base, pairs(), mesh=_mesh(), batch_size=8)
    for options in ({}, {"frozen_embeddings": True}, ADAPTER):
        with pytest.raises(InputError, match="examples: they carry the activations of layers that train"):
            fit(carrying, **options)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": -1}, "--lora-rank: must be at least 0, is -1"),
        ({"lora_alpha": 8.0}, "--lora-alpha: there is no adapter without --lora-rank"),
        ({"lora_rank_stabilised": True}, "--lora-rank-stabilised: there is no adapter without --lora-rank"),
        ({"lora_rank": 2, "lora_dropout": 1.0}, "--lora-dropout: must be in [0, 1), is 1.0"),
        ({"lora_rank": 2, "lora_targets": ("(",)}, "--lora-targets: '(' is not a regular expression"),
        ({"lora_rank": 2, "frozen_embeddings": True}, "--frozen-embeddings: with --lora-rank only the adapter trains"),
        ({"lora_rank": 2, "frozen_parameters": (".*",)}, "--frozen-parameters: with --lora-rank only the adapter"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError) as caught:
        recipes.FitConfig(**changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_rank": 2, "lora_targets": ("quer",)},
            "--lora-targets: 'quer' matches none of this model's parts: query",
        ),
        ({"lora_rank": 2, "frozen_layers": 3}, "--frozen-layers: all 3 layers are frozen; --lora-rank leaves nothing"),
        ({"lora_rank": 2, "frozen_layers": 4}, "--frozen-layers: the model has 3 layers, not 4"),
        ({"frozen_parameters": ("head",)}, "--frozen-parameters: 'head' matches no parameter"),
        ({"frozen_parameters": (".*",)}, "--frozen-parameters: nothing is left that trains"),
        ({"lora_rank": 2, "reference": {"embed": {}}}, "--reference: with --lora-rank the reference shares what does"),
        (
            {"frozen_embeddings": True, "reference": {"embed": {}}},
            "--reference: with --frozen-embeddings the reference",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError) as caught:
        fit(**changes)
    assert str(caught.value).startswith(message)


def test_an_adapter_that_moves_part_of_the_way_is_refused():
    config = CONFIG.replace(lora=models.LoRA(2, 2.0))
    with pytest.raises(InputError, match="--reference-update-rate: with --lora-rank it must be 1, is"):
        recipes.preference_objective(config, recipes.PreferenceObjective(), reference_update_every=1)
    with pytest.raises(InputError, match="--reference-update-rate: with --lora-rank it must be 1"):
        recipes.DPOConfig(model="m", dataset="d", output_dir="o", lora_rank=2, reference_update_every=1)
