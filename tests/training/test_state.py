import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxalign.sharding import parse_mesh, tree_shardings
from jaxalign.training import (
    OptimizerConfig,
    copy_tree,
    create_state,
    make_optimizer,
    put_batch,
    state_shapes,
    state_shardings,
)
from tests.training.helpers import AXES, make_batch, make_params, setup

MIXED = "data=2,fsdp=2,tensor=2"


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "sgd"])
def test_optimizer_state_lies_as_the_parameters(name):
    momentum = 0.0 if name == "adamw" else 0.9
    config = OptimizerConfig(optimizer=name, momentum=momentum, weight_decay=0.1, clip_norm=1.0)
    _, state, _, _, layout = setup(MIXED, optimizer=config)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.optimizer_state) if leaf.shape == (8, 24)]
    assert specs
    assert set(specs) == {P("fsdp", "tensor")}
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, state, layout))


def test_a_factored_state_is_replicated_where_shapes_differ():
    mesh, params = parse_mesh("fsdp=8"), {"w": np.zeros((256, 256), np.float32)}
    optimizer = optax.adafactor(1e-3)
    shardings = tree_shardings({"w": ("embed", "mlp")}, params, mesh)
    layout = state_shardings(params, optimizer, mesh=mesh, shardings=shardings)
    shapes = jax.eval_shape(optimizer.init, params)
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(layout.optimizer_state), strict=True):
        assert sharding.spec == (P("fsdp", "tensor") if leaf.shape == (256, 256) else P())
        sharding.shard_shape(leaf.shape)


def test_extra_mirrors_the_parameters_or_is_replicated():
    extra = {"reference": make_params(1), "shift": np.float32(2.0)}
    _, state, _, _, _ = setup(MIXED, extra=extra)
    assert state.extra["reference"]["up"].sharding.spec == P("fsdp", "tensor")
    assert state.extra["shift"].sharding.is_fully_replicated
    assert float(state.extra["shift"]) == 2.0


def test_shapes_without_arrays():
    _, state, _, optimizer, _ = setup(optimizer=OptimizerConfig(), extra={"shift": np.float32(0)})
    shapes = state_shapes(make_params(), optimizer, extra={"shift": np.float32(0)})
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes, state))


def test_a_raw_key_is_refused():
    optimizer, _ = make_optimizer(OptimizerConfig(), 1)
    mesh, params = parse_mesh("fsdp=1"), make_params()
    with pytest.raises(TypeError, match="typed key"):
        create_state(params, optimizer, jax.random.PRNGKey(0), mesh=mesh, shardings=tree_shardings(AXES, params, mesh))


@pytest.mark.parametrize("mesh", ["fsdp=1", "fsdp=8"])
def test_the_callers_arrays_survive_donation(mesh):
    """The state is made of copies, so the same parameters serve as the frozen reference; so does a copy of a state."""
    mesh = parse_mesh(mesh)
    optimizer, _ = make_optimizer(OptimizerConfig(optimizer="sgd", learning_rate=0.5), 10)
    shardings = tree_shardings(AXES, make_params(), mesh)
    params, key = jax.device_put(make_params(), shardings), jax.random.key(7)
    step, _, _, _, _ = setup(",".join(f"{name}={size}" for name, size in mesh.shape.items()))
    state = create_state(params, optimizer, key, mesh=mesh, shardings=shardings)
    snapshot = copy_tree(state.params)
    old = state.params["up"]
    for index in range(3):
        state, _ = step(state, params, put_batch(make_batch(index), mesh))
    assert old.is_deleted()
    assert not key.is_deleted()
    for name, leaf in make_params().items():
        np.testing.assert_array_equal(params[name], leaf)
        np.testing.assert_array_equal(snapshot[name], leaf)
        assert not np.array_equal(state.params[name], leaf)


def _twice(step, state, frozen, batch):
    """Refused at once, or found deleted by the second step."""
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, frozen, batch))


def test_an_aliased_frozen_tree_does_not_survive():
    """Why copies are made: the state's own arrays as the frozen tree cannot work."""
    step, state, _, _, _ = setup()
    frozen = state.params
    batch = put_batch(make_batch(0), step.mesh)
    with pytest.raises((ValueError, RuntimeError), match=r"donate|deleted"):
        _twice(step, state, frozen, batch)


def test_copy_tree_moves_and_keeps_dtypes():
    mesh = parse_mesh("fsdp=8")
    tree = {"x": np.arange(8, dtype=np.int32), "key": jax.random.key(3), "y": jnp.ones((8, 2), jnp.bfloat16)}
    shardings = tree_shardings({"x": ("embed",), "key": (), "y": ("embed", None)}, tree, mesh)
    copy = copy_tree(tree, shardings)
    assert copy["x"].sharding.spec == P("fsdp")
    assert copy["y"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.random.key_data(copy["key"]), jax.random.key_data(tree["key"]))
