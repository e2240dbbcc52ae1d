"""Batches in order: pure in their number, resumable from one integer, sliced by process."""

import jax
import numpy as np
import pytest

from jaxalign.data import make_batches, make_iterator
from jaxalign.errors import InputError
from tests.data import toy

EXAMPLES = [toy.synthetic(i, 2 + i % 7, [1 + i % 4, 1 + (i * 5) % 6]) for i in range(23)]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def records_of(batches):
    return sorted(int(i) for batch in batches for i in batch.record_ids.ravel() if i >= 0)


@pytest.mark.parametrize("pack", [False, True])
def test_a_run_loses_and_repeats_nothing(pack):
    source = make_batches(EXAMPLES, batch_size=4, seed=3, num_epochs=2, pack=pack, max_length=24)
    batches = list(make_iterator(source))
    assert len(batches) == len(source)
    assert records_of(batches) == sorted([*range(23), *range(23)])
    assert {tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in batches} == {
        tuple(leaf.shape for leaf in jax.tree.leaves(batches[0]))
    }
    for k in (3, 0, len(source) - 1):
        assert_equal(
            batches[k], make_batches(EXAMPLES, batch_size=4, seed=3, num_epochs=2, pack=pack, max_length=24)[k]
        )


@pytest.mark.parametrize("options", [{}, {"pack": True, "max_length": 40}, {"layout": "two_rows"}])
def test_resume_from_a_position_is_bit_identical(options):
    def fresh(start=0):
        return make_iterator(make_batches(EXAMPLES, batch_size=4, seed=3, **options), start)

    whole = fresh()
    batches = [next(whole) for _ in range(17)]  # three epochs or more
    first = fresh()
    for _ in range(6):
        next(first)
    saved = first.position
    assert saved == 6
    for resumed in (fresh(saved), fresh()):
        resumed.position = saved
        for batch in batches[6:]:
            assert_equal(next(resumed), batch)
        assert resumed.position == 17
    first.position = 2  # back, in an iterator that has read ahead
    assert_equal(next(first), batches[2])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_slices_of_processes_are_the_whole(processes):
    def source(**process):
        return make_batches(EXAMPLES, batch_size=4, seed=1, num_epochs=1, pack=True, max_length=24, **process)

    whole = source()
    parts = [source(process_index=i, process_count=processes) for i in range(processes)]
    assert len(whole) > 2
    for k in range(len(whole)):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part[k] for part in parts))
        assert_equal(joined, whole[k])
    # A position saved by two processes is valid on any other number.
    assert_equal(next(make_iterator(parts[0], 1)), parts[0][1])


def test_evaluation_keeps_the_order_and_fills_the_last_batch_with_empty_rows():
    source = make_batches(EXAMPLES, batch_size=5, shuffle=False, num_epochs=1, pad_token=3)
    batches = list(make_iterator(source))
    assert [int(i) for batch in batches for i in batch.record_ids[:, 0]] == [*range(23), -1, -1]
    last = batches[-1]
    assert not last.example[3:].any()
    assert not last.target_mask[3:].any()
    assert not last.pair_mask[3:].any()
    assert (last.tokens[3:] == 3).all()


def test_a_run_without_end_goes_on_and_far():
    source = make_batches(EXAMPLES, batch_size=4, seed=0)
    far = 10**9
    assert_equal(next(make_iterator(source, far)), source[far])


def test_the_end():
    source = make_batches(EXAMPLES, batch_size=5, num_epochs=1)
    iterator = make_iterator(source, 4)
    next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)
    assert iterator.position == 5
    assert list(make_iterator(source, iterator.position)) == []
    with pytest.raises(InputError, match="data position 6 is outside the 5 batches"):
        iterator.position = 6


def test_bad_process_slices():
    with pytest.raises(InputError, match="batch_size 6 does not divide among 4 processes"):
        make_batches(EXAMPLES, batch_size=6, process_count=4)
    with pytest.raises(InputError, match="process_index 2 is not one of 2"):
        make_batches(EXAMPLES, batch_size=6, process_index=2, process_count=2)
