"""bfloat16 parameters: rounding without bias, rules that run in float32, and a state that stays exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign.sharding import parse_mesh, tree_shardings
from jaxalign.training import (
    Checkpoints,
    OptimizerConfig,
    cast_parameters,
    copy_tree,
    fingerprint,
    make_optimizer,
    put_batch,
    round_stochastically,
)
from tests.tolerances import BFLOAT16
from tests.training.helpers import batches_from, loss, make_batch, setup
from tests.training.test_guard import poisoned, with_poison

DRAWS = 1 << 16


def in_float32(function):
    """The loss of parameters in any dtype."""

    def wide(params, *args):
        return function(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), *args)

    return wide


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# --- rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [1.001, -1.003, 3e-5, -0.7071, 1.9999, 123456.7, 1e-40])
def test_rounding_goes_to_a_neighbour_and_is_right_on_average(x):
    x = np.float32(x)
    found = round_stochastically(jax.random.key(3), jnp.full(DRAWS, x))
    assert found.dtype == jnp.bfloat16
    values, counts = np.unique(np.asarray(found, np.float64), return_counts=True)
    inner, outer = sorted(values, key=abs)
    # Next to each other, on both sides of x: by what a bfloat16 is, the upper half of a float32.
    assert np.float32(outer).view(np.uint32) - np.float32(inner).view(np.uint32) == 1 << 16
    assert abs(inner) < abs(np.float64(x)) < abs(outer)
    share = (np.float64(x) - inner) / (outer - inner)
    deviation = np.sqrt(share * (1 - share) / DRAWS)
    assert abs(counts[np.argmax(np.abs(values))] / DRAWS - share) < 5 * deviation


def test_what_bfloat16_holds_is_not_rounded():
    every = np.arange(1 << 16, dtype=np.uint16).view(jnp.bfloat16)
    found = np.asarray(round_stochastically(jax.random.key(0), jnp.asarray(every, jnp.float32)))
    value = every.astype(np.float32)
    known = ~np.isnan(value)
    # A denormal may be flushed to zero on the way in, by the cast: not by the rounding.
    normal = known & ((np.abs(value) >= np.finfo(np.float32).tiny) | (value == 0))
    np.testing.assert_array_equal(found[normal].view(np.uint16), every[normal].view(np.uint16))
    assert np.isnan(found[~known].astype(np.float32)).all()


def test_draws_do_not_depend_on_the_mesh():
    x = jax.random.normal(jax.random.key(1), (64, 32))
    found = []
    for spec in ("fsdp=1", "fsdp=4,tensor=2", "data=2,tensor=4"):
        sharding = tree_shardings({"x": ("embed", "mlp")}, {"x": x}, parse_mesh(spec))["x"]
        placed = jax.device_put(x, sharding)
        found.append(np.asarray(jax.jit(round_stochastically, out_shardings=sharding)(jax.random.key(2), placed)))
    for other in found[1:]:
        np.testing.assert_array_equal(other.view(np.uint16), found[0].view(np.uint16))


def test_only_float32_is_rounded():
    with pytest.raises(TypeError, match="not bfloat16"):
        round_stochastically(jax.random.key(0), jnp.zeros(3, jnp.bfloat16))


# --- rules ------------------------------------------------------------------------------------------------------------

TREE = {"kernel": jnp.ones((64, 64)), "norm": {"scale": jnp.ones(64)}}


def test_updates_too_small_for_bfloat16_are_not_lost():
    """Weights of 1, 64 updates of 2^-12: to nearest each is lost (half a unit is 2^-9), at random the mean is exact."""
    optimizer, _ = make_optimizer(OptimizerConfig(optimizer="sgd", learning_rate=2.0**-12), 64)
    params = cast_parameters(TREE, "bfloat16")
    assert (params["kernel"].dtype, params["norm"]["scale"].dtype) == (jnp.bfloat16, jnp.float32)
    grads = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
    state = optimizer.init(params)
    for index in range(64):
        updates, state = optimizer.update(grads, state, params, key=jax.random.key(index))
        params = optax.apply_updates(params, updates)
    assert params["kernel"].dtype == jnp.bfloat16
    found = np.asarray(params["kernel"], np.float64)
    # Each rounding adds at most (unit / 2)^2 to a weight's variance; the unit below 1 is 2^-8.
    deviation = np.sqrt(64 * 2.0**-18 / found.size)
    assert abs(found.mean() - (1 - 64 * 2.0**-12)) < 5 * deviation
    assert abs(found.mean() - 1) > 5 * deviation
    np.testing.assert_array_equal(params["norm"]["scale"], np.float32(1 - 64 * 2.0**-12))


def test_float32_parameters_are_updated_as_optax_does():
    config = OptimizerConfig(learning_rate=0.01, clip_norm=1.0)
    optimizer, schedule = make_optimizer(config, 10)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), TREE)
    found, expected = optimizer.init(TREE), plain.init(TREE)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for _ in range(2):
        ours, found = optimizer.update(grads, found, TREE)
        theirs, expected = plain.update(grads, expected, TREE)
        assert bits((ours, found)) == bits((theirs, expected))


def test_bfloat16_parameters_need_a_key():
    optimizer, _ = make_optimizer(OptimizerConfig(), 1)
    params = cast_parameters(TREE, "bfloat16")
    with pytest.raises(TypeError, match="key="):
        optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("rule", ["adamw", "rmsprop", "sgd"])
def test_a_bfloat16_state_has_the_means_of_a_float32_one(rule):
    """Rounded to nearest, a momentum of decay .99 would stop a fifth short; a mean square of .999 would never fall."""
    options = {"beta1": 0.99} if rule == "adamw" else {"momentum": 0.99}
    size = 4096
    params = {"x": jnp.zeros(size)}

    def run(dtype):
        optimizer, _ = make_optimizer(OptimizerConfig(optimizer=rule, state_dtype=dtype, **options), 1)

        @jax.jit
        def scanned(key):
            def body(state, index):
                grads = {"x": jnp.full(size, jnp.where(index < 200, 3.0, 1.0))}
                updates, state = optimizer.update(grads, state, params, key=jax.random.fold_in(key, index))
                return state, updates["x"]

            state, updates = jax.lax.scan(body, optimizer.init(params), jnp.arange(800))
            return state, updates[-1]

        return scanned(jax.random.key(4))

    (_, expected), (state, found) = run("float32"), run("bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim} == {"bfloat16"}
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=BFLOAT16)
    spread = float(found.std() / abs(expected.mean()))
    assert 0 < spread < 0.1


# --- the step ---------------------------------------------------------------------------------------------------------

ADAMW = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0, state_dtype="bfloat16")


def bfloat16_setup(mesh="fsdp=1", **options):
    return setup(mesh, **({"optimizer": ADAMW, "loss": in_float32(loss), "dtype": "bfloat16"} | options))


def test_the_state_lies_as_the_parameters():
    _, state, _, _, layout = bfloat16_setup("data=2,fsdp=2,tensor=2")
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, layout))
    kinds = {(str(leaf.dtype), leaf.sharding.spec) for leaf in jax.tree.leaves(state) if leaf.shape == (8, 24)}
    assert kinds == {("bfloat16", P("fsdp", "tensor"))}
    assert state.params["up_bias"].dtype == jnp.float32


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_run_continues_bit_for_bit(accumulation, tmp_path):
    step, state, frozen, _, layout = bfloat16_setup("fsdp=2", accumulation=accumulation)

    def run(state, start, stop):
        for index, batch in zip(range(start, stop), batches_from(start), strict=False):
            del index
            state, metrics = step(state, frozen, put_batch(batch, step.mesh))
            assert float(metrics["nonfinite"][0]) == 0
        return state

    state = run(state, 0, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, position=3)
        checkpoints.wait()
        before = fingerprint(state)
        like = jax.eval_shape(lambda: state)
        whole = fingerprint(run(state, 3, 6))
        restored = checkpoints.restore(like, layout)
    assert fingerprint(restored.state) == before
    assert fingerprint(run(restored.state, 3, 6)) == whole != before


def test_each_step_rounds_with_draws_of_its_own():
    """The same gradient on the same parameters, at another step: the loss has no say, what differs is the rounding."""

    def constant(params, frozen, batch, key, extra):
        return {"sum": (sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), 1.0, 1.0)}, {}

    sgd = OptimizerConfig(optimizer="sgd", learning_rate=1e-3)
    step, state, frozen, _, _ = bfloat16_setup(loss=in_float32(constant), optimizer=sgd)
    batch = put_batch(make_batch(0), step.mesh)

    def after(index):
        again = dataclasses.replace(copy_tree(state), step=jnp.int32(index))
        return bits(step(again, frozen, batch)[0].params)

    assert after(0) == after(0) != after(1)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(kind):
    step, state, frozen, _, _ = bfloat16_setup("data=2,tensor=2", loss=in_float32(poisoned), accumulation=2)
    state, _ = step(state, frozen, put_batch(with_poison(0, None), step.mesh))
    before = bits((state.params, state.optimizer_state, state.step))
    state, metrics = step(state, frozen, put_batch(with_poison(1, kind), step.mesh))
    assert float(metrics["nonfinite"][0]) == 1
    assert bits((state.params, state.optimizer_state, state.step)) == before
    state, metrics = step(state, frozen, put_batch(with_poison(1, None), step.mesh))
    assert float(metrics["nonfinite"][0]) == 0
    assert bits((state.params, state.optimizer_state, state.step)) != before


def test_cast_parameters_keeps_what_a_model_reads_in_float32():
    tree = {
        "embed": {"tokens": np.zeros((8, 4), np.float32)},
        "stacks": {"0": {"query": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4), jnp.bfloat16)}}},
        "final_norm": {"scale": jnp.ones(4, jnp.bfloat16)},
        "score": {"kernel": jnp.ones((2, 4))},
        "count": jnp.int32(3),
    }
    found = cast_parameters(tree, "bfloat16")
    dtypes = jax.tree.map(lambda leaf: str(leaf.dtype), found)
    assert dtypes == {
        "embed": {"tokens": "bfloat16"},
        "stacks": {"0": {"query": {"kernel": "bfloat16", "bias": "float32"}}},
        "final_norm": {"scale": "float32"},
        "score": {"kernel": "float32"},
        "count": "int32",
    }
    assert found["score"]["kernel"] is tree["score"]["kernel"]
