import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign.errors import InputError
from jaxalign.sharding import parse_mesh, tree_shardings
from jaxalign.training import OptimizerConfig, create_state, make_train_step, put_batch, state_shardings, weighted_total
from jaxalign.training._dce import only_outputs
from tests.tolerances import FLOAT32
from tests.training.helpers import log_probs, loss, make_batch, make_params, setup, train

STEPS = 5


@pytest.fixture(scope="module")
def reference():
    """Five SGD steps on one device, the batch at once."""
    return train(STEPS)


def assert_same(found, expected):
    for name, leaf in expected[0].items():
        np.testing.assert_allclose(found[0][name], leaf, rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    for after, before in zip(found[1], expected[1], strict=True):
        assert after.keys() == before.keys()
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=FLOAT32, atol=FLOAT32, err_msg=name)


@pytest.mark.parametrize("accumulation", [2, 4, 8, 16])
def test_micro_batches_change_nothing(reference, accumulation):
    assert_same(train(STEPS, accumulation=accumulation), reference)


@pytest.mark.parametrize(
    ("mesh", "accumulation"),
    [
        ("data=8", 1),
        ("fsdp=8", 1),
        ("tensor=8", 1),
        ("data=2,tensor=4", 1),
        ("data=2,fsdp=2,tensor=2", 1),
        ("fsdp=4,tensor=2", 4),
        ("data=8", 2),
        ("data=2,fsdp=4", 2),
    ],
)
def test_meshes_change_nothing(reference, mesh, accumulation):
    assert_same(train(STEPS, mesh, accumulation=accumulation), reference)


def test_the_numbers_are_those_of_the_formula():
    """Against a loss written out here, and its plain gradient: sums over the whole batch, divided once."""
    params, batch, key = make_params(), make_batch(0), jax.random.fold_in(jax.random.key(7), 0)

    def total(candidate):
        terms, _ = loss(candidate, params, batch, key, {})
        return sum(coefficient * value / weight for value, weight, coefficient in terms.values())

    value, grads = jax.value_and_grad(total)(params)
    found, (metrics,) = train(1, accumulation=4)
    np.testing.assert_allclose(metrics["loss"], value, rtol=FLOAT32)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=FLOAT32)
    assert metrics["learning_rate"] == pytest.approx(0.3)
    assert metrics["nonfinite"] == 0
    for name in params:
        np.testing.assert_allclose(found[name], params[name] - 0.3 * grads[name], rtol=FLOAT32, atol=FLOAT32)


def test_rows_of_unequal_weight_are_not_averaged_by_micro_batch():
    """Mean of micro-batch means, the classic error, is a different number on this data: the tests above can fail."""
    batch = make_batch(0)
    halves = [jax.tree.map(lambda leaf, half=half: leaf[half::2], batch) for half in (0, 1)]
    params = make_params()
    value = [weighted_total(loss(params, params, part, jax.random.key(0), {})[0]) for part in (batch, *halves)]
    assert abs(float(value[0]) - float(value[1] + value[2]) / 2) > 100 * FLOAT32


def test_draws_differ_between_steps_and_keys():
    """The random token mask is drawn anew each step: the same batch and parameters give another token count."""
    step, state, frozen, _, _ = setup(optimizer=OptimizerConfig(optimizer="sgd", learning_rate=0.0))
    batch = put_batch(make_batch(0), step.mesh)
    counts = []
    for _ in range(6):
        state, metrics = step(state, frozen, batch)
        counts.append(int(metrics["loss/tokens"][1]))
    assert len(set(counts)) > 1
    assert int(state.step) == 6


def test_a_term_of_weight_zero_counts_nothing():
    def empty(params, frozen, batch, key, extra):
        nothing = jnp.zeros(())
        value = jnp.sum(log_probs(params, batch["tokens"]) * 0)
        terms, metrics = loss(params, frozen, batch, key, extra)
        return terms | {"empty": (value, nothing, 1.0)}, metrics | {"none": (nothing, nothing)}

    for accumulation in (1, 4):
        step, state, frozen, _, _ = setup(loss=empty, accumulation=accumulation)
        state, metrics = step(state, frozen, put_batch(make_batch(0), step.mesh))
        _, (expected,) = train(1)
        assert float(metrics["loss"][0]) == pytest.approx(expected["loss"], rel=FLOAT32)
        assert float(metrics["nonfinite"][0]) == 0
        assert np.isfinite(float(optax.tree.norm(state.params)))


def test_one_term_is_reported_once():
    def one(params, frozen, batch, key, extra):
        terms, metrics = loss(params, frozen, batch, key, extra)
        return {"tokens": terms["tokens"]}, metrics

    step, state, frozen, _, _ = setup(loss=one)
    _, metrics = step(state, frozen, put_batch(make_batch(0), step.mesh))
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "nonfinite", "learning_rate"}


def count_products(step, state, frozen):
    text = step.lower(state, frozen, make_batch(0)).as_text()
    return len(re.findall(r"stablehlo\.dot_general", text))


def test_the_weights_of_the_whole_batch_cost_no_forward_pass():
    assert count_products(*setup(accumulation=4)[:3]) == count_products(*setup(accumulation=1)[:3]) > 0


def test_only_outputs_drops_even_collectives():
    mesh = parse_mesh("data=8")

    def both(x):
        summed = jax.shard_map(
            lambda part: jax.lax.psum(part @ part.T, "data"), mesh=mesh, in_specs=P("data"), out_specs=P()
        )
        return jnp.sum(summed(x)), {"count": x.shape[0] * 1.0, "sum": jnp.sum(x)}

    program = str(jax.make_jaxpr(lambda x: only_outputs(lambda y: both(y)[1], x))(jnp.ones((8, 4))))
    assert "shard_map" not in program
    assert "dot_general" not in program
    assert jax.jit(lambda x: only_outputs(lambda y: both(y)[1], x))(jnp.ones((8, 4))) == {"count": 8.0, "sum": 32.0}


def test_fsdp_gradients_are_reduced_into_shards():
    """On fsdp the compiled step holds no whole gradient: what leaves it is sharded as the parameters are."""
    step, state, frozen, _, layout = setup("fsdp=8", accumulation=2)
    state, metrics = step(state, frozen, put_batch(make_batch(0), step.mesh))
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, layout))
    assert all(value.sharding.is_fully_replicated for value in jax.tree.leaves(metrics))


def test_the_step_sees_the_mesh():
    """A loss may write a collective by hand on the ambient mesh."""
    seen = []

    def spying(params, frozen, batch, key, extra):
        seen.append(jax.sharding.get_abstract_mesh().shape)
        return loss(params, frozen, batch, key, extra)

    step, state, frozen, _, _ = setup("data=4,tensor=2", loss=spying)
    step(state, frozen, put_batch(make_batch(0), step.mesh))
    assert seen
    assert all(dict(shape) == {"data": 4, "fsdp": 1, "tensor": 2, "sequence": 1} for shape in seen)


@pytest.mark.parametrize(("mesh", "accumulation", "rows"), [("fsdp=1", 3, 16), ("data=8", 4, 16), ("fsdp=8", 1, 12)])
def test_rows_that_do_not_divide_are_refused(mesh, accumulation, rows):
    step, state, frozen, _, _ = setup(mesh, accumulation=accumulation)
    with pytest.raises(InputError, match="--batch-size") as caught:
        step(state, frozen, make_batch(0, rows))
    assert "\n" not in str(caught.value)


def test_accumulation_must_be_positive():
    with pytest.raises(InputError, match="--accumulation 0"):
        setup(accumulation=0)


def test_bfloat16_gradients_accumulate_in_float32():
    """Micro-batch gradients 256, 1, 1, ...: a bfloat16 sum would stay at 256."""
    mesh = parse_mesh("fsdp=1")
    params = {"x": jnp.zeros((), jnp.bfloat16)}
    optimizer = optax.sgd(1.0)
    shardings = tree_shardings({"x": ()}, params, mesh)
    layout = state_shardings(params, optimizer, mesh=mesh, shardings=shardings)
    state = create_state(params, optimizer, jax.random.key(0), mesh=mesh, shardings=shardings)

    def linear(params, frozen, batch, key, extra):
        return {"sum": (jnp.sum(params["x"] * batch["slope"]), jnp.sum(batch["weight"]), 1.0)}, {}

    slope = np.asarray([256.0] + 15 * [1.0], jnp.bfloat16)
    batch = {"slope": slope, "weight": np.eye(16, dtype=np.float32)[0]}
    state, _ = make_train_step(linear, optimizer, mesh=mesh, state_shardings=layout, accumulation=16)(
        state, None, batch
    )
    assert state.params["x"].dtype == jnp.bfloat16
    assert float(state.params["x"]) == -float(jnp.asarray(271.0, jnp.bfloat16))
