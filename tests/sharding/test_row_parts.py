"""Rows by process, at any number of processes, on any mesh: each row once, none lost."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign import data
from jaxalign.errors import InputError
from jaxalign.sharding import data_shards, make_mesh
from jaxalign.sharding._rules import row_parts

SIZES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.sampled_from(SIZES),
    each=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    pack=st.booleans(),
    seed=st.integers(0, 9),
)
def test_processes_part_every_batch(sizes, each, rows, lengths, pack, seed):
    mesh = make_mesh(*sizes)
    parts = row_parts(mesh, lambda device: device.id // each)
    assert sorted(parts) == list(range(8 // each))
    distinct = sorted(set(parts.values()))
    assert sorted(shard for part in distinct for shard in part) == list(range(data_shards(mesh)))

    examples = [
        data.Example(
            tokens=np.arange(n), positions=np.arange(n), branch=np.zeros(n, int), source_index=np.arange(n),
            targets=np.arange(n), target_sequence=np.zeros(n, int), record_id=index,
        )
        for index, n in enumerate(lengths)
    ]  # fmt: skip
    options = {"batch_size": rows * data_shards(mesh), "seed": seed, "num_epochs": 1}
    if pack:
        options |= {"pack": True, "max_length": max(lengths) + 4}
    whole = list(data.make_iterator(data.make_batches(examples, **options)))
    own = [
        list(data.make_iterator(
            data.make_batches(examples, process_index=index, process_count=len(distinct), **options)
        ))
        for index in range(len(distinct))
    ]  # fmt: skip
    for number, batch in enumerate(whole):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(batches[number] for batches in own))
        jax.tree.map(np.testing.assert_array_equal, joined, batch)
    assert {len(batches) for batches in own} == {len(whole)}
    seen = np.concatenate([batch.record_ids.ravel() for batch in whole])
    assert sorted(seen[seen >= 0].tolist()) == list(range(len(lengths)))


def test_a_host_may_have_a_square_of_a_torus():
    """As on TPU slices: the mesh goes along rows of chips, a host has two neighbours in each of two rows."""
    hosts = [0, 0, 1, 1, 0, 0, 1, 1]
    parts = row_parts(make_mesh(fsdp=8), lambda device: hosts[device.id])
    assert parts == {0: (0, 1, 4, 5), 1: (2, 3, 6, 7)}
    assert row_parts(make_mesh(fsdp=4, tensor=2), lambda device: hosts[device.id]) == {0: (0, 2), 1: (1, 3)}
    assert set(row_parts(make_mesh(fsdp=2, tensor=4), lambda device: hosts[device.id]).values()) == {(0, 1)}


def test_parts_that_overlap_are_refused():
    with pytest.raises(InputError, match="--mesh: process 0 would hold the row shards"):
        row_parts(make_mesh(fsdp=4, tensor=2), lambda device: device.id // 3)
