"""Where a number that is not finite began: the module, the layer, the records; forward or in the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import recipes
from jaxalign.recipes._likelihood import likelihood_objective
from jaxalign.training import TrainingError
from jaxalign.training._origins import find_origins
from tests.recipes import toy


def origin(function, *arguments):
    return find_origins(function, *arguments, names=["x", "y"][: len(arguments)]).origin


def test_what_is_selected_away_is_no_origin():
    x = jnp.asarray([1.0, 0.0, 2.0])
    assert origin(lambda x: jnp.where(x > 0, jnp.log(x), 0.0).sum(), x) is None
    masked = jnp.asarray([True, False, True])
    assert origin(lambda x: jax.nn.softmax(jnp.where(masked, x, -jnp.inf)).sum(), x) is None


def test_an_infinity_that_was_meant_becomes_a_fault_where_it_turns_into_nan():
    x = jnp.asarray([1.0, 2.0])

    def masked_row(x):
        with jax.named_scope("scores"):
            y = jnp.where(jnp.zeros(2, bool), x, -jnp.inf)
        with jax.named_scope("softmax"):
            return (y - y.max()).sum()

    found = origin(masked_row, x)
    assert (found.scope, found.operation) == ("softmax", "sub")


def test_layers_are_counted_through_scans_and_wrappers():
    weights = jnp.ones((5, 3)).at[3, 1].set(jnp.float32(3e38))

    @jax.checkpoint
    def layer(hidden, weight):
        with jax.named_scope("layers[2::1]"), jax.named_scope("up"):
            return jax.jit(lambda hidden: hidden * weight * 10)(hidden)

    def run(weights, hidden):
        hidden = jax.lax.scan(lambda hidden, weight: (layer(hidden, weight), None), hidden, weights)[0]
        return hidden.sum()

    found = origin(run, weights, jnp.ones((2, 3)).at[0].set(0.0))
    assert found.scope == "layer 5/up"
    assert (found.rows, found.length) == ((1,), 2)
    found = find_origins(jax.grad(lambda x, y: jnp.sqrt(x).sum()), jnp.asarray([4.0, 0.0]), 1.0, names=["x", "y"])
    assert found.origin is not None
    bad = find_origins(lambda x: x.sum(), jnp.asarray([1.0, jnp.nan]), names=["x"]).origin
    assert (bad.scope, bad.operation, bad.rows) == ("x", "", (1,))


def with_leaf(path, layer, value):
    """The tiny model with one entry of one layer's leaf replaced, where every record sees it."""
    tree = jax.tree.map(np.asarray, toy.params("llama"))
    node = tree
    for name in path[:-1]:
        node = node[name]
    leaf = np.array(node[path[-1]])
    leaf[layer] = value
    node[path[-1]] = leaf
    return tree


def message(params, **settings):
    config = recipes.FitConfig(**{"max_steps": 3, "batch_size": 8, "mesh": "data=1", "debug": True} | settings)
    examples = toy.examples(toy.demonstrations())
    with pytest.raises(TrainingError) as caught:
        recipes.fit(toy.SHAPES["llama"], params, examples, likelihood_objective, config, report=lambda *_: None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "settings"),
    [
        ("down", {}),
        ("query", {"accumulation": 2, "remat": "full"}),
        ("gate", {"frozen_layers": 1, "packing": True, "mesh": "data=2,tensor=2"}),
    ],
)
def test_the_module_and_its_layer_are_named(part, settings):
    said = message(with_leaf(("stacks", "0", part, "kernel"), 1, 3e38), **settings)
    assert said.startswith("step 1: loss is not finite; records [")
    assert f"it began in layer 1/{part} (dot_general), in records [" in said


def test_a_weight_that_is_broken_already_is_named():
    said = message(with_leaf(("stacks", "0", "up", "kernel"), 2, np.nan))
    assert "it began in the parameters['stacks']['0']['up']['kernel'], which came in like that" in said


def test_without_debug_nothing_is_looked_for():
    said = message(with_leaf(("stacks", "0", "down", "kernel"), 1, 3e38), debug=False)
    assert "it began" not in said


def test_a_gradient_names_its_leaf_and_where_it_broke():
    """A finite loss whose gradient is infinite, in one record of one micro-batch."""
    from jaxalign.training import put_batch
    from tests.training.helpers import setup
    from tests.training.test_guard import poisoned, with_poison

    step, state, frozen, _, _ = setup(loss=poisoned, accumulation=4)
    batch = put_batch(with_poison(1, "gradient"), step.mesh)
    state, metrics = step(state, frozen, batch)
    assert float(metrics["nonfinite"][0]) == 1
    said = step.explain(state, frozen, batch, {}, lambda rows, length: [100 + row for row in rows])
    assert said == (
        "the forward pass is finite, the gradient of ['up'] is not: it began in the loss, outside the model (div), "
        "in records [103]"
    )
