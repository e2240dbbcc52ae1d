"""Plans: nothing lost, nothing repeated, every row within its limits, every batch a function of (seed, number)."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import BatchPlan, Sizes
from jaxalign.errors import InputError


def sizes_of(tokens, targets=None):
    tokens = np.array(tokens, np.int64)
    targets = np.maximum(tokens // 2, 1) if targets is None else np.array(targets, np.int64)
    ones = np.ones_like(tokens)
    return Sizes(
        tokens=tokens, targets=targets, pairs=ones, sequences=2 * ones, record_ids=100 + np.arange(len(tokens))
    )


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 60))
def test_every_epoch_holds_every_example_once_within_the_shape(lengths, batch_size, seed, shuffle, pack, room):
    sizes = sizes_of(lengths)
    limit = max(lengths) + room
    plan = BatchPlan(
        sizes, batch_size=batch_size, seed=seed, shuffle=shuffle, num_epochs=3, pack=pack, max_length=limit
    )
    batches = [plan.rows(k) for k in range(len(plan))]
    assert all(len(rows) == batch_size for rows in batches)
    stream = [row for rows in batches for row in rows]
    used = [row for row in stream if row]
    assert stream == used + [()] * (len(stream) - len(used))  # empty rows only at the very end
    assert len(stream) - len(used) < batch_size
    assert collections.Counter(index for row in used for index in row) == dict.fromkeys(range(len(lengths)), 3)
    assert used == [row for epoch in range(3) for row in plan.epoch(epoch)]
    for epoch in range(3):
        assert sorted(index for row in plan.epoch(epoch) for index in row) == list(range(len(lengths)))
    shape = plan.shape
    assert shape.tokens <= limit
    assert shape.tokens % 8 == 0 or shape.tokens == limit
    for row in used:
        rows = list(row)
        assert sizes.tokens[rows].sum() <= shape.tokens
        assert sizes.targets[rows].sum() <= shape.targets
        assert sizes.pairs[rows].sum() <= shape.pairs
        assert sizes.sequences[rows].sum() <= shape.sequences
        assert len(rows) <= shape.examples
    if not pack:
        assert shape.examples == 1


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 60), max_size=6))
def test_batch_k_does_not_depend_on_what_was_asked_before(lengths, batch_size, seed, pack, asked):
    def fresh():
        return BatchPlan(sizes_of(lengths), batch_size=batch_size, seed=seed, pack=pack, max_length=64)

    used = fresh()
    for k in asked:
        assert used.rows(k) == fresh().rows(k)


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 5), st.booleans(), st.integers(1, 20))
def test_rows_padded_for_pieces_hold_the_same(lengths, batch_size, pack, pieces):
    def plan(pieces):
        return BatchPlan(
            sizes_of(lengths), batch_size=batch_size, pack=pack, max_length=61, num_epochs=2, pieces=pieces
        )

    padded, plain = plan(pieces), plan(1)
    assert [padded.rows(k) for k in range(len(padded))] == [plain.rows(k) for k in range(len(plain))]
    for name in ("tokens", "targets"):
        own, least = getattr(padded.shape, name), getattr(plain.shape, name)
        assert own % pieces == 0
        assert least <= own < least + pieces
    assert dataclasses.replace(padded.shape, tokens=0, targets=0) == dataclasses.replace(
        plain.shape, tokens=0, targets=0
    )


def test_seeds_and_epochs_shuffle_differently():
    def plan(**options):
        return BatchPlan(sizes_of([5] * 50), batch_size=5, **options)

    assert plan(seed=1).epoch(0) == plan(seed=1).epoch(0)
    assert plan(seed=1).epoch(0) != plan(seed=2).epoch(0)
    assert plan(seed=1).epoch(0) != plan(seed=1).epoch(1)
    assert plan(shuffle=False).epoch(0) == plan(shuffle=False).epoch(1) == [(i,) for i in range(50)]


def test_a_batch_crosses_the_end_of_an_epoch():
    plan = BatchPlan(sizes_of([5] * 7), batch_size=5, shuffle=False)
    assert plan.rows(1) == [(5,), (6,), (0,), (1,), (2,)]
    assert plan.rows(10**6)[0] == ((5 * 10**6) % 7,)
    with pytest.raises(TypeError, match="never ends"):
        len(plan)


def test_packing_fills_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 300, 2000)
    plan = BatchPlan(sizes_of(lengths), batch_size=8, pack=True, max_length=512)
    assert plan.shape.tokens == 512
    fill = lengths.sum() / (512 * len(plan.epoch(0)))
    assert fill > 0.95
    assert len(plan.epoch(3)) / len(plan.epoch(0)) == pytest.approx(1, abs=0.02)
    # Not the long ones first: the halves of an epoch have rows of about the same number of examples.
    halves = np.array_split([len(row) for row in plan.epoch(0)], 2)
    assert halves[0].mean() == pytest.approx(halves[1].mean(), rel=0.1)


def test_packing_without_shuffling_keeps_the_order_of_first_examples():
    plan = BatchPlan(sizes_of([4, 8, 4, 8, 4]), batch_size=2, shuffle=False, pack=True, max_length=8)
    assert plan.epoch(0) == [(0, 2), (1,), (3,), (4,)]


@pytest.mark.parametrize(
    ("lengths", "options", "message"),
    [
        ([], {}, "no examples"),
        ([3, 9, 4], {"max_length": 8}, "record 101: a row of 9 tokens, more than the rows' max_length 8"),
        ([3], {"batch_size": 0}, "batch_size is 0, must be at least 1"),
        ([3], {"seed": -1}, "seed is -1, must be at least 0"),
        ([3], {"num_epochs": 0}, "num_epochs is 0, must be at least 1"),
    ],
)
def test_bad_plans(lengths, options, message):
    with pytest.raises(InputError, match=message):
        BatchPlan(sizes_of(lengths), **{"batch_size": 2, **options})


def test_batches_outside_the_plan():
    plan = BatchPlan(sizes_of([3] * 5), batch_size=2, num_epochs=1)
    assert len(plan) == 3
    for k in (-1, 3):
        with pytest.raises(IndexError, match=f"batch {k} of 3"):
            plan.rows(k)
