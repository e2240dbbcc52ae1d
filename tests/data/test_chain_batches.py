"""Batches of examples that are drawn: pure in their number, mixed by weights, with batches of plain text beside."""

import collections
import threading

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import (
    BatchPlan,
    ChainFormat,
    Mixture,
    Sizes,
    build_chains,
    example_sizes,
    make_batches,
    make_iterator,
    text_windows,
)
from jaxalign.errors import InputError
from tests.data.chain_text import EARLY, GPT2, HH
from tests.data.test_iterator import assert_equal

WORDS = ["good", "bad", "better", "long", "short", "again and again", "The actors were better than the story."]
RECORDS = [
    {"prompt": f"The film {n}", "chosen": WORDS[n % 7], "rejected": f"not {WORDS[(n * 3 + 1) % 7]}"} for n in range(21)
] + [HH, EARLY]
FORM = ChainFormat(structures=("p", "pn", "np", "aux"))
CHAINS, _ = build_chains(RECORDS, GPT2, FORM, seed=7)
TEXT, _ = text_windows([{"text": "again and again " * n} for n in range(1, 9)], GPT2, length=16)
PACKED = {"pack": True, "max_length": 160}


def fresh(**options):
    return make_batches(build_chains(RECORDS, GPT2, FORM, seed=7)[0], **{"batch_size": 4, "seed": 3, **options})


def used(batch):
    """(record, the tokens of its example) of a batch, sorted."""
    found = []
    for row in range(len(batch.tokens)):
        for slot, record in enumerate(batch.record_ids[row]):
            if record >= 0:
                found.append((int(record), batch.tokens[row][batch.example[row] == slot + 1].tolist()))
    return sorted(found)


@pytest.mark.parametrize("options", [{}, PACKED])
def test_batch_k_is_whatever_was_read_before(options):
    source = fresh(**options)
    in_order = [source[k] for k in range(14)]  # over two epochs or more
    for k in (13, 0, 7, 7, 2):
        assert_equal(source[k], in_order[k])
        assert_equal(fresh(**options)[k], in_order[k])
    # As are those of threads that read ahead, from any position.
    iterator = make_iterator(fresh(**options), threads=4, prefetch=8)
    for batch in in_order:
        assert_equal(next(iterator), batch)
    iterator.position = 5
    assert_equal(next(iterator), in_order[5])
    iterator.close()


def test_threads_that_ask_for_different_epochs_get_the_same():
    source, found = fresh(**PACKED), {}

    def read(numbers):
        for k in numbers:
            found[k, numbers] = source[k]

    orders = [(0, 9, 3, 12), (12, 1, 0), (6, 12, 3), (9, 0, 6)]
    threads = [threading.Thread(target=read, args=(numbers,)) for numbers in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == sum(map(len, orders))
    whole = fresh(**PACKED)
    for (k, _), batch in found.items():
        assert_equal(batch, whole[k])


@pytest.mark.parametrize("options", [{}, PACKED])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_slices_of_processes_are_the_whole(processes, options):
    whole = fresh(**options)
    beside = [make_batches(TEXT, batch_size=4, process_index=i, process_count=processes) for i in range(processes)]
    parts = [fresh(process_index=i, process_count=processes, beside=beside[i], **options) for i in range(processes)]
    text = make_batches(TEXT, batch_size=4)
    for k in (0, 5, 11):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part[k] for part in parts))
        assert_equal(joined.pretraining, text[k])
        assert_equal(joined.replace(pretraining=None), whole[k])


@pytest.mark.parametrize("options", [{}, PACKED, {"pack": True, "max_length": 512}])
def test_every_epoch_uses_every_example_once_drawn_anew(options):
    source = fresh(num_epochs=4, **options)
    shape = source.plan.shape
    seen = collections.defaultdict(list)
    batches = [source[k] for k in range(len(source))]
    for batch in batches:
        assert batch.tokens.shape == (4, shape.tokens)
        assert batch.targets.shape == (4, shape.targets)
        for record, tokens in used(batch):
            seen[record].append(tokens)
    assert set(seen) == set(range(len(RECORDS)))
    for record, draws in seen.items():
        assert sorted(draws) == sorted(CHAINS.draw(record, epoch).tokens.tolist() for epoch in range(4))
    assert sum(len({tuple(draw) for draw in draws}) > 1 for draws in seen.values()) > len(RECORDS) * 0.9
    for epoch in range(4):
        rows = source.plan.entries_of(epoch)
        assert sorted(entry for row in rows for entry in row) == [(index, epoch) for index in range(len(RECORDS))]
    assert shape.tokens <= options.get("max_length", 1000)
    assert (shape.examples > 1) == bool(options)
    assert not shape.branched


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(1, 5))
def test_packed_draws_stay_within_the_shape(seed, room, batch_size):
    chains, _ = build_chains(RECORDS[:9], GPT2, FORM, seed=seed)
    source = make_batches(
        chains, batch_size=batch_size, seed=seed, pack=True, max_length=int(chains.sizes.tokens.max()) + room
    )
    shape, epochs = source.plan.shape, 5
    for epoch in range(epochs):
        for row in source.plan.entries_of(epoch):
            table = example_sizes([chains.draw(*entry) for entry in row]).table().sum(axis=0)
            assert (table <= [shape.tokens, shape.targets, shape.pairs, shape.sequences, shape.examples]).all()
    source[sum(len(source.plan.entries_of(epoch)) for epoch in range(epochs)) // batch_size]  # collates


def test_packing_goes_by_what_is_drawn_not_by_the_most_it_could_be():
    form = ChainFormat(structures=("p", "pn"))
    chains, _ = build_chains(RECORDS[:21] * 20, GPT2, form)
    source = make_batches(chains, batch_size=4, pack=True, max_length=256)
    rows = source.plan.entries_of(1)
    drawn = sum(len(chains.draw(*entry).tokens) for row in rows for entry in row)
    assert drawn / (256 * len(rows)) > 0.9
    assert drawn < 0.8 * chains.sizes.tokens.sum()


def test_what_is_drawn_carries_its_arrays_through_packing():
    source = fresh(**PACKED)
    batch = source[0]
    assert set(batch.extras) == {"draw", "negative"}
    assert batch.extras["draw"].dtype == np.int32
    assert batch.extras["draw"].shape == batch.sequence_mask.shape
    for k in (0, 1, 9):
        numbers = [
            row[mask].tolist() for row, mask in zip(source[k].extras["draw"], source[k].sequence_mask, strict=True)
        ]
        assert numbers == [[index + used * len(CHAINS) for index, used in row] for row in source.plan.entries(k)]
    assert batch.extras["negative"].shape == batch.targets.shape
    assert batch.extras["negative"].dtype == bool
    assert not batch.extras["negative"][~batch.target_mask].any()
    assert batch.extras["negative"].any()
    assert not batch.branch.any()
    assert not batch.pair_mask.any()
    source = np.take_along_axis(batch.tokens, batch.source_index + 1, axis=1)
    assert (source[batch.target_mask] == batch.targets[batch.target_mask]).all()
    of_target = np.take_along_axis(batch.example, batch.source_index, axis=1)
    assert (np.take_along_axis(batch.example, batch.source_index + 1, axis=1) == of_target)[batch.target_mask].all()


def test_in_order_for_evaluation():
    source = fresh(shuffle=False, num_epochs=1)
    records = [record for k in range(len(source)) for record, _ in used(source[k])]
    assert records == list(range(len(RECORDS)))
    assert used(source[0]) == [(index, CHAINS.draw(index, 0).tokens.tolist()) for index in range(4)]
    # A mixture is of training alone.
    mixed, _ = build_chains(RECORDS, GPT2, FORM, sources=[n % 2 for n in range(23)], weights=[9, 1])
    plan = make_batches(mixed, batch_size=4, shuffle=False, num_epochs=1).plan
    assert plan.epoch(0) == [(index,) for index in range(23)]
    with pytest.raises(InputError, match="layout 'two_rows': examples that are drawn are plain sequences"):
        fresh(layout="two_rows")


def sizes_of(tokens):
    tokens = np.array(tokens, np.int64)
    ones = np.ones_like(tokens)
    return Sizes(tokens=tokens, targets=ones, pairs=ones, sequences=ones, record_ids=np.arange(len(tokens)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=3, max_size=40).map(lambda some: [0, 1, 2, *some]),
    st.lists(st.floats(0.05, 20), min_size=3, max_size=3),
    st.integers(0, 5),
    st.booleans(),
)
def test_a_mixtures_shares_are_its_weights(source, weights, seed, pack):
    mixture = Mixture(np.array(source), tuple(weights))
    plan = BatchPlan(sizes_of([3] * len(source)), batch_size=2, seed=seed, pack=pack, max_length=9, mixture=mixture)
    exact = np.array(weights) / sum(weights) * len(source)
    shares = mixture.counts()
    assert (np.abs(shares - exact) <= 1).all()
    assert shares.min() >= 1
    if exact.min() >= 1:
        assert shares.sum() == len(source)
    taken = collections.Counter()
    for epoch in range(5):
        entries = [entry for row in plan.entries_of(epoch) for entry in row]
        counts = np.bincount([source[index] for index, _ in entries], minlength=3)
        assert counts.tolist() == shares.tolist()
        for index, before in entries:
            taken[index, before] += 1
    # No record again before its source is used up: its draws are numbered without gaps, sources in step.
    assert set(taken.values()) == {1}
    for number in range(3):
        own = [index for index, of in enumerate(source) if of == number]
        times = [sum((index, before) in taken for before in range(len(taken))) for index in own]
        assert max(times) - min(times) <= 1
        assert sum(times) == 5 * shares[number]
        assert all((index, before) in taken for index, count in zip(own, times, strict=True) for before in range(count))


def test_a_source_is_used_up_in_the_order_of_its_epochs():
    """Within the stream of epochs a record comes again only when all others of its source have come."""
    source = [0] * 10 + [1] * 3
    plan = BatchPlan(sizes_of([3] * 13), batch_size=1, mixture=Mixture(np.array(source), (1.0, 1.0)))
    assert plan.shape.tokens == 8
    small = [[entry for (entry,) in plan.entries_of(epoch) if source[entry[0]] == 1] for epoch in range(6)]
    assert [len(entries) for entries in small] == [6] * 6  # of 13, the one left over goes to the other
    for epoch, entries in enumerate(small):
        rounds = [before for _, before in entries]
        assert sorted(rounds) == [2 * epoch] * 3 + [2 * epoch + 1] * 3
        for number in set(rounds):
            assert sorted(index for index, before in entries if before == number) == [10, 11, 12]
    assert plan.entries_of(2) == BatchPlan(
        sizes_of([3] * 13), batch_size=1, mixture=Mixture(np.array(source), (1.0, 1.0))
    ).entries_of(2)


def test_without_weights_sources_are_in_proportion():
    source = np.array([0] * 30 + [1] * 10)
    plan = BatchPlan(sizes_of([3] * 40), batch_size=1)
    assert np.bincount(source[[index for (index,) in plan.epoch(3)]]).tolist() == [30, 10]
    same = Mixture(source, (3.0, 1.0))
    assert same.counts().tolist() == [30, 10]
    assert Mixture(source, (1.0, 1.0)).counts().tolist() == [20, 20]
    assert Mixture(source, (1.0, 1e-9)).counts().tolist() == [40, 1]
    assert Mixture(np.array([0, 1, 2]), (1.0, 1.0, 1.0)).counts().tolist() == [1, 1, 1]


def test_mixed_chains_are_drawn_anew_each_time_a_source_comes_round():
    sources = [0] * 18 + [1] * 5
    chains, _ = build_chains(RECORDS, GPT2, FORM, seed=7, sources=sources, weights=[1, 3])
    source = make_batches(chains, batch_size=4, num_epochs=3, **PACKED)
    seen = collections.defaultdict(list)
    for k in range(len(source)):
        for record, tokens in used(source[k]):
            seen[record].append(tokens)
    shares = [sum(len(draws) for record, draws in seen.items() if sources[record] == of) for of in (0, 1)]
    assert shares == [3 * count for count in chains.mixture.counts()] == [18, 51]
    for record, draws in seen.items():
        assert sorted(draws) == sorted(CHAINS.draw(record, number).tokens.tolist() for number in range(len(draws)))
    assert {len(seen[record]) for record in range(18)} == {1}
    assert {len(seen[record]) for record in range(18, 23)} == {10, 11}


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        ([0, 1], (1.0,), "1 weights for 2 sources"),
        ([0, 0], (1.0, 2.0), "2 weights for 1 sources"),
        ([0, 1], (1.0, 0.0), r"weights of a mixture must be finite and above 0, are \[1.0, 0.0\]"),
        ([0, 1], (1.0, float("nan")), "weights of a mixture must be finite"),
        ([0, 1], (1.0, float("inf")), "weights of a mixture must be finite"),
    ],
)
def test_bad_mixtures(source, weights, message):
    with pytest.raises(InputError, match=message):
        Mixture(np.array(source), weights)


def test_a_mixture_is_shuffled():
    mixture = Mixture(np.array([0, 1]), (1.0, 1.0))
    with pytest.raises(InputError, match="a mixture by weights is shuffled"):
        BatchPlan(sizes_of([3, 3]), batch_size=1, shuffle=False, mixture=mixture)


def test_a_batch_has_the_text_of_its_number_beside_it():
    text = make_batches(TEXT, batch_size=2, seed=5, pack=True, max_length=16)
    source = fresh(beside=text, **PACKED)
    alone = fresh(**PACKED)
    iterator = make_iterator(source, threads=3)
    for k in range(12):
        batch = next(iterator)
        assert_equal(batch, source[k])
        assert_equal(batch.pretraining, text[k])
        assert_equal(batch.replace(pretraining=None), alone[k])
        assert batch.pretraining.tokens.shape == (2, 16)
        assert batch.pretraining.pretraining is None
    iterator.position = 4
    assert_equal(next(iterator).pretraining, text[4])
    iterator.close()
    assert alone[0].pretraining is None


def test_plans_of_listed_examples_are_what_they_were():
    """Recorded before examples could be drawn: runs that were started then go on with the same batches."""
    sizes = sizes_of([5, 9, 3, 7, 2, 8, 4, 6])
    plain, packed, in_order = (
        BatchPlan(sizes, batch_size=3, seed=4, **options)
        for options in ({}, {"pack": True, "max_length": 16}, {"pack": True, "max_length": 16, "shuffle": False})
    )
    assert [plain.rows(k) for k in (0, 1, 5)] == [[(1,), (2,), (0,)], [(7,), (4,), (5,)], [(0,), (4,), (0,)]]
    assert [packed.rows(k) for k in (0, 1, 5)] == [
        [(1, 3), (7, 4, 5), (2, 0, 6)],
        [(1, 3), (4, 5, 7), (6, 2, 0)],
        [(0, 6, 2), (7, 4, 5), (3, 1)],
    ]
    assert in_order.rows(7) == [(0, 2, 6), (1, 3), (4, 5, 7)]
    for plan in (plain, packed, in_order):
        for epoch in range(3):
            assert {before for row in plan.entries_of(epoch) for _, before in row} == {epoch}
            assert plan.epoch(epoch) == [tuple(index for index, _ in row) for row in plan.entries_of(epoch)]
