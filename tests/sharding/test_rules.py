import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxalign import models
from jaxalign.errors import InputError
from jaxalign.sharding import (
    MESH_AXES,
    RULES,
    batch_sharding,
    data_shards,
    length_shards,
    make_mesh,
    parse_mesh,
    parse_rules,
    partition_spec,
    replicated,
    row_order,
    row_share,
    shard_tree,
    tree_shardings,
)
from jaxalign.sharding._rules import mesh_axes

MIXED = "data=2,fsdp=2,tensor=2"


def test_the_table_names_only_mesh_axes():
    for target in RULES.values():
        assert set(mesh_axes(target)) <= set(MESH_AXES)


@pytest.mark.parametrize(
    ("axes", "sizes", "expected"),
    [
        (("vocab", "embed"), (32, 16), P("tensor", "fsdp")),
        (("layers", "embed", "heads", "head_dim"), (3, 16, 4, 8), P(None, "fsdp", "tensor")),
        (("layers", "heads", "head_dim", "embed"), (3, 4, 8, 16), P(None, "tensor", None, "fsdp")),
        (("batch", "length", "embed"), (8, 5, 16), P(("data", "fsdp"), "sequence")),  # rows have taken fsdp
        (("embed", "embed"), (16, 16), P("fsdp")),  # one mesh axis splits an array once
        (("vocab", "embed"), (31, 16), P(None, "fsdp")),  # 31 does not divide
        (("batch",), (6,), P()),
        (("batch", "length"), (8, 4), P(("data", "fsdp"), "sequence")),
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


def test_a_mesh_without_an_axis_has_it_once():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)
    assert partition_spec(("vocab", "embed"), (8, 8), mesh) == P(None, "fsdp")


def test_the_table_splits_no_parameter_twice():
    for array in models.PARAMETER_AXES:
        axes = [axis for name in array for axis in mesh_axes(RULES[name])]
        assert len(axes) == len(set(axes)), array


def test_every_kind_of_parameter_is_checked():
    """An axis that no array of ``PARAMETER_AXES`` has beside another could split one array twice, unnoticed."""
    config = models.ModelConfig(
        vocab_size=8, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, mlp_width=8, max_positions=8,
        attention_bias=True, attention_output_bias=True, mlp_bias=True, position="learned", unembedding_bias=True,
        embedding_width=4, lora=models.LoRA(rank=2, alpha=1.0),
    )  # fmt: skip
    known = [set(array) for array in models.PARAMETER_AXES]
    for tree in (
        models.logical_axes(config), models.logical_axes(config.replace(labels=2)), models.lora_axes(config),
    ):  # fmt: skip
        for axes in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, tuple)):
            assert any(set(axes) <= array for array in known), axes


def test_own_entries_of_the_table():
    rules = parse_rules(("vocab=fsdp", "embed = tensor,sequence", "mlp=", "heads=", "kv_heads="))
    assert rules["vocab"] == "fsdp"
    assert rules["embed"] == ("tensor", "sequence")
    assert rules["mlp"] is None
    assert {name for name in RULES if rules[name] != RULES[name]} == {"vocab", "embed", "mlp", "heads", "kv_heads"}
    mesh = parse_mesh("fsdp=2,tensor=2,sequence=2")
    assert partition_spec(("vocab", "embed"), (8, 8), mesh, rules) == P("fsdp", ("tensor", "sequence"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("vocab",), "--sharding-rules vocab: expected AXIS=MESH-AXES, AXIS one of embed, heads, kv_heads, mlp, vocab"),
        (
            ("width=fsdp",),
            "--sharding-rules width=fsdp: unknown axis 'width'; the axes are embed, heads, kv_heads, mlp, ",
        ),
        (("embd=fsdp",), "--sharding-rules embd=fsdp: unknown axis 'embd'; did you mean 'embed'?"),
        (("batch=tensor",), "--sharding-rules batch=tensor: unknown axis 'batch'; the axes are embed, "),
        (("length=",), "--sharding-rules length=: unknown axis 'length'; the axes are embed, "),
        (("vocab=model",), "--sharding-rules vocab=model: unknown mesh axis 'model'; the mesh's axes are data, fsdp, "),
        (("vocab=tensr",), "--sharding-rules vocab=tensr: unknown mesh axis 'tensr'; did you mean 'tensor'?"),
        (("vocab=fsdp,",), "--sharding-rules vocab=fsdp,: unknown mesh axis ''; the mesh's axes are data, fsdp, "),
        (("mlp=", "mlp=fsdp"), "--sharding-rules mlp=fsdp: mlp is given twice"),
        (
            ("vocab=fsdp",),
            "--sharding-rules vocab=fsdp: the mesh axis fsdp would split one array twice, by vocab and by",
        ),
        (
            ("mlp=fsdp,fsdp",),
            "--sharding-rules mlp=fsdp,fsdp: the mesh axis fsdp would split one array twice, by mlp a",
        ),
        (("embed=", "rank=tensor"), "--sharding-rules embed= rank=tensor: the mesh axis tensor would split one array"),
    ],
)
def test_entries_that_make_no_table_are_named(texts, message):
    with pytest.raises(InputError) as caught:
        parse_rules(texts, models.PARAMETER_AXES)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_abstract_mesh():
    mesh = AbstractMesh((4, 64, 8, 2), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
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
    assert length_shards(mesh) == 1
    assert length_shards(parse_mesh("data=2,sequence=4")) == 4
    assert data_shards(parse_mesh("data=2,sequence=4")) == 2
    assert length_shards(jax.make_mesh((2,), ("data",), (AxisType.Auto,))) == 1


def test_one_process_has_every_row():
    for sizes in ((1, 1, 1), (2, 2, 2), (8, 1, 1), (1, 2, 4), (1, 2, 1, 4)):
        assert row_share(make_mesh(*sizes)) == (0, 1)
        assert row_order(make_mesh(*sizes)) == list(range(sizes[0] * sizes[1]))
