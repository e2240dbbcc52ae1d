"""What must not change a result: micro-batches, padding, packing, layouts, meshes, caches, how records are written."""

import functools

import jax
import numpy as np
import pytest

from jaxalign import data, models, recipes
from jaxalign.data import BatchShape
from jaxalign.training import weighted_total
from tests.recipes import toy
from tests.recipes.toy import STEPS, Run, assert_same_run
from tests.tolerances import FLOAT32

BETA = 0.5
PAIRS = {"dpo": toy.pair_records, "sft": toy.demonstrations}
shapes = pytest.mark.parametrize("shape", list(toy.SHAPES))


def objective_of(recipe):
    if recipe == "sft":
        return recipes.likelihood_objective
    objective = recipes.PreferenceObjective(beta=BETA)
    return lambda config: recipes.preference_objective(config, objective)


@functools.cache
def examples_of(recipe):
    return toy.examples(PAIRS[recipe]())


@functools.cache
def run(recipe: str, shape: str, **options) -> Run:
    return toy.train(shape, examples_of(recipe), objective_of(recipe), **options)


VARIANTS = {
    "one row a micro-batch": {"accumulation": 8},
    "four rows a micro-batch": {"accumulation": 2},
    "data 8": {"mesh": "data=8"},
    "fsdp 8": {"mesh": "fsdp=8"},
    "tensor 4, data 2": {"mesh": "data=2,tensor=4"},
    "data 2, fsdp 2, tensor 2": {"mesh": "data=2,fsdp=2,tensor=2"},
}
PAIR_VARIANTS = VARIANTS | {
    "two rows a pair": {"pair_layout": "two_rows"},
    "cached reference": {"cache_reference": True},
}
# Several at once, and what does not touch the shape of the model.
MIXED_VARIANTS = {
    "recomputed activations": {"remat": "full"},
    "micro-batches on a mesh": {"accumulation": 2, "mesh": "data=2,tensor=2"},
    "cached reference, two rows, mesh": {"cache_reference": True, "pair_layout": "two_rows", "mesh": "fsdp=8"},
}


@shapes
@pytest.mark.parametrize("variant", PAIR_VARIANTS)
def test_dpo_does_not_depend_on(variant, shape):
    assert_same_run(run("dpo", shape, **PAIR_VARIANTS[variant]), run("dpo", shape))


@pytest.mark.parametrize("variant", MIXED_VARIANTS)
def test_dpo_does_not_depend_on_several_at_once(variant):
    assert_same_run(run("dpo", "llama", **MIXED_VARIANTS[variant]), run("dpo", "llama"))


# What differs between the shapes was shown with pairs: for the second one a few.
@pytest.mark.parametrize(
    ("shape", "variant"),
    [("llama", name) for name in VARIANTS] + [("gpt2", "one row a micro-batch"), ("gpt2", "data 2, fsdp 2, tensor 2")],
)
def test_sft_does_not_depend_on(variant, shape):
    assert_same_run(run("sft", shape, **VARIANTS[variant]), run("sft", shape))


FROZEN_VARIANTS = {
    "cached trunk": {"cache_trunk": True},
    "cached trunk and reference, two rows, micro-batches, mesh": {
        "cache_trunk": True, "cache_reference": True, "pair_layout": "two_rows", "accumulation": 2,
        "mesh": "data=2,tensor=2",
    },
}  # fmt: skip


@shapes
@pytest.mark.parametrize("variant", FROZEN_VARIANTS)
def test_dpo_above_frozen_layers_does_not_depend_on(variant, shape):
    found = run("dpo", shape, frozen_layers=1, **FROZEN_VARIANTS[variant])
    expected = run("dpo", shape, frozen_layers=1)
    assert_same_run(found, expected)
    assert_only_the_top_moved(found)


@shapes
def test_sft_above_frozen_layers_does_not_depend_on_the_cached_trunk(shape):
    found, expected = (run("sft", shape, frozen_layers=1, cache_trunk=cached) for cached in (True, False))
    assert_same_run(found, expected)
    assert_only_the_top_moved(found)


def assert_only_the_top_moved(found: Run):
    for name, before in found.params[0].items():
        moved = found.params[-1][name] != before
        if "stacks" in name:
            assert not moved[0].any()
            # A bias of the keys shifts all scores of a query alike: the softmax does not see it.
            assert moved[1:].any() or "['key']['bias']" in name, name
        else:
            assert moved.any() == ("final_norm" in name), name


def pack_options(some_examples, rows):
    """Options that pack all examples into ``rows`` rows; the same number in every epoch that will be seen."""
    total = sum(example.count("token") for example in some_examples)
    length = next(
        length
        for length in range(total // rows, total + 1)
        if length >= max(example.count("token") for example in some_examples)
        and all(
            len(data.make_batches(some_examples, batch_size=rows, pack=True, max_length=length).plan.epoch(epoch))
            == rows
            for epoch in range(STEPS)
        )
    )
    return {"packing": True, "row_length": length, "batch_size": rows}


@shapes
@pytest.mark.parametrize("recipe", list(PAIRS))
def test_packed_is_unpacked(recipe, shape):
    options = pack_options(examples_of(recipe), 2)
    assert_same_run(run(recipe, shape, **options), run(recipe, shape))


def test_packed_above_a_cached_trunk_and_reference_on_two_devices_is_unpacked():
    options = pack_options(examples_of("dpo"), 2) | {"cache_trunk": True, "cache_reference": True, "mesh": "data=2"}
    assert_same_run(run("dpo", "llama", frozen_layers=1, **options), run("dpo", "llama", frozen_layers=1))


@shapes
def test_ranked_records_are_their_pairs(shape):
    ranked = toy.examples(toy.ranked_records())
    assert [example.count("pair") for example in ranked] == [3, 2, 3]
    assert_same_run(toy.train(shape, ranked, objective_of("dpo")), run("dpo", shape))


def test_packed_ranked_records_in_two_rows_are_their_pairs():
    ranked = toy.examples(toy.ranked_records())
    options = pack_options(ranked, 2) | {"pair_layout": "two_rows", "accumulation": 2}
    assert_same_run(toy.train("gpt2", ranked, objective_of("dpo"), **options), run("dpo", "gpt2"))


def unpadded(recipe: str, shape: str, learning_rate: float) -> Run:
    """The same training in the plainest way: one example at a time in a row of its own length, sums divided at the
    end, parameters minus learning rate times gradient."""
    config, params = toy.SHAPES[shape], toy.params(shape)
    objective = objective_of(recipe)(config)
    frozen = {"base": {}, "reference": params}

    def sums(params, batch):
        terms, _ = objective.loss(params, frozen, batch, jax.random.key(0), {})
        ((value, weight, coefficient),) = terms.values()
        assert coefficient == 1.0
        return value, weight

    differentiate = jax.jit(jax.value_and_grad(sums, has_aux=True))
    losses, norms, trees = [], [], [params]
    for _ in range(STEPS):
        total, count, gradient = 0.0, 0.0, None
        for example in examples_of(recipe):
            tokens, targets = example.count("token"), example.count("target")
            shape_of_it = BatchShape(tokens, targets, example.count("pair"), example.sequences)
            (value, weight), part = differentiate(params, data.collate([[example]], shape_of_it))
            total, count = total + float(value), count + float(weight)
            gradient = part if gradient is None else jax.tree.map(np.add, gradient, part)
        gradient = jax.tree.map(lambda leaf, count=count: np.asarray(leaf) / count, gradient)
        params = jax.tree.map(
            lambda leaf, slope: np.asarray(leaf) - np.float32(learning_rate) * slope, params, gradient
        )
        losses.append(total / count)
        norms.append(
            np.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(gradient)))
        )
        trees.append(params)
    return Run(np.array(losses), np.array(norms), [toy.leaves(tree) for tree in trees], [], trees)


@shapes
@pytest.mark.parametrize("recipe", list(PAIRS))
def test_padded_is_unpadded(recipe, shape):
    assert_same_run(run(recipe, shape), unpadded(recipe, shape, learning_rate=0.1))


def test_a_term_without_weight_counts_nothing():
    assert float(weighted_total({"empty": (0.0, 0.0, 1.0), "full": (3.0, 2.0, 2.0)})) == 3.0


@pytest.mark.parametrize("recipe", list(PAIRS))
def test_rows_that_hold_nothing_change_nothing(recipe):
    """The last batch of an epoch is filled up with empty rows: 8 examples in batches of 16."""
    config = toy.SHAPES["llama"]
    objective = objective_of(recipe)(config)
    frozen = {"base": {}, "reference": toy.params("llama", 7)}
    totals = []
    for batch_size in (8, 16):
        batch = data.make_batches(examples_of(recipe), batch_size=batch_size, num_epochs=1, shuffle=False)[0]
        terms, metrics = jax.jit(objective.loss)(toy.params("llama"), frozen, batch, jax.random.key(0), {})
        totals.append({"total": weighted_total(terms)} | {name: s / n for name, (s, n) in metrics.items()})
    assert totals[0].keys() == totals[1].keys()
    for name, value in totals[0].items():
        np.testing.assert_allclose(totals[1][name], value, rtol=FLOAT32, atol=FLOAT32, err_msg=name)


def test_the_frozen_split_is_the_whole_model():
    """Nothing in the tests above would notice a model that computes something else with a stack split off."""
    config, params = toy.SHAPES["llama"], toy.params("llama")
    split, top, bottom = models.freeze(config, params, 1)
    tokens = np.arange(12).reshape(1, 12)
    whole = models.logits(config, params, tokens)
    np.testing.assert_allclose(
        models.logits(split, models.combine(top, bottom), tokens), whole, rtol=FLOAT32, atol=FLOAT32
    )
