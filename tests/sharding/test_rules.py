import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign import models
from jaxalign.sharding import (
    MESH_AXES,
    RULES,
    batch_sharding,
    data_shards,
    make_mesh,
    parse_mesh,
    partition_spec,
    replicated,
    row_order,
    row_share,
    shard_tree,
    tree_shardings,
)

MIXED = "data=2,fsdp=2,tensor=2"


def test_the_table_names_only_mesh_axes():
    for target in RULES.values():
        assert set(() if target is None else (target,) if isinstance(target, str) else target) <= set(MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "sizes", "expected"),
    [
        (("vocab", "embed"), (32, 16), P("tensor", "fsdp")),
        (("layers", "embed", "heads", "head_dim"), (3, 16, 4, 8), P(None, "fsdp", "tensor")),
        (("layers", "heads", "head_dim", "embed"), (3, 4, 8, 16), P(None, "tensor", None, "fsdp")),
        (("batch", "length", "embed"), (8, 5, 16), P(("data", "fsdp"))),  # rows have taken fsdp
        (("embed", "embed"), (16, 16), P("fsdp")),  # one mesh axis splits an array once
        (("vocab", "embed"), (31, 16), P(None, "fsdp")),  # 31 does not divide
        (("batch",), (6,), P()),
        ((None, "mlp"), (5, 8), P(None, "tensor")),
        ((), (), P()),
    ],
)
def test_specification(axes, sizes, expected):
    spec = partition_spec(axes, sizes, parse_mesh(MIXED))
    assert spec == expected
    NamedSharding(parse_mesh(MIXED), spec).shard_shape(sizes)  # valid for JAX too


def test_no_axis_twice_on_one_device_either():
    assert partition_spec(("embed", "embed"), (4, 4), parse_mesh("fsdp=1")) == P("fsdp")


def test_what_replicates_is_logged_once(caplog):
    mesh = parse_mesh("tensor=8")
    with caplog.at_level(logging.INFO, "jaxalign.sharding"):
        for _ in range(3):
            assert partition_spec(("heads",), (9,), mesh) == P()
    assert [record.getMessage() for record in caplog.records] == [
        "axis 'heads' of size 9 is replicated: it does not divide into 8 shards of ('tensor',)"
    ]


def test_unknown_names_and_wrong_ranks_are_errors():
    mesh = parse_mesh(MIXED)
    with pytest.raises(ValueError, match="'hidden'"):
        partition_spec(("hidden",), (8,), mesh)
    with pytest.raises(ValueError, match="do not fit"):
        partition_spec(("embed",), (8, 8), mesh)


def test_own_rules():
    assert partition_spec(("a", "b"), (8, 8), parse_mesh(MIXED), {"a": ("data", "tensor"), "b": None}) == P(
        ("data", "tensor")
    )


def test_abstract_mesh():
    mesh = AbstractMesh((4, 64, 8), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    sharding = tree_shardings({"w": ("embed", "mlp")}, {"w": jax.ShapeDtypeStruct((4096, 16384), jnp.float32)}, mesh)
    assert sharding["w"].shard_shape((4096, 16384)) == (64, 2048)


@pytest.mark.parametrize("text", ["fsdp=1", "data=8", "fsdp=8", "data=2,tensor=4", MIXED])
def test_the_decoders_parameters_lie_as_the_table_says(text):
    config = models.ModelConfig(
        family="llama",
        vocab_size=64,
        width=32,
        layers=2,
        heads=4,
        kv_heads=4,
        head_dim=8,
        mlp_width=64,
        max_positions=16,
    )
    mesh = parse_mesh(text)
    params = models.init(config, jax.random.key(0))
    shardings = tree_shardings(models.logical_axes(config), params, mesh)
    placed = shard_tree(params, shardings)
    for leaf, sharding, before in zip(*map(jax.tree.leaves, (placed, shardings, params)), strict=True):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, before)
    split = mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert placed["embed"]["tokens"].addressable_shards[0].data.size * split == params["embed"]["tokens"].size


def test_batch_and_replicated():
    mesh = parse_mesh(MIXED)
    assert data_shards(mesh) == 4
    assert batch_sharding(mesh).shard_shape((8, 3)) == (2, 3)
    assert replicated(mesh).shard_shape((8, 3)) == (8, 3)


def test_one_process_has_every_row():
    for sizes in ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 2, 4)):
        assert row_share(make_mesh(*sizes)) == (0, 1)
        assert row_order(make_mesh(*sizes)) == list(range(sizes[0] * sizes[1]))
