"""Who gets what: balanced, blind to nothing but the seed, and the same every time."""

import collections
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.evaluation import study

SEEDS = st.integers(0, 2**63)


@given(SEEDS, st.integers(1, 40), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_a_plan_is_balanced_over_pairs_and_over_raters(seed, pairs, raters, data):
    names = [f"rater {index}" for index in range(raters)]
    each = data.draw(st.none() | st.integers(1, raters))
    dealt = study.plan(seed, pairs, names, each)
    assert list(dealt) == names
    assert all(len(set(hand)) == len(hand) for hand in dealt.values())
    counts = collections.Counter(itertools.chain.from_iterable(dealt.values()))
    assert counts == dict.fromkeys(range(pairs), raters if each is None else each)
    loads = [len(hand) for hand in dealt.values()]
    assert max(loads) - min(loads) <= 1
    assert dealt == study.plan(seed, pairs, names, each)


@given(SEEDS, st.integers(1, 25), st.integers(1, 4), st.integers(4, 8), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_those_who_come_by_themselves_fill_every_pair_evenly(seed, pairs, each, raters, random):
    given_out = collections.Counter()
    hands = {f"rater {index}": set() for index in range(raters)}
    waiting = list(hands)
    while waiting:
        rater = random.choice(waiting)
        pair = study.choose(seed, rater, pairs, given_out, hands[rater], each)
        if pair is None:
            waiting.remove(rater)
            continue
        assert pair not in hands[rater]
        hands[rater].add(pair)
        given_out[pair] += 1
    assert given_out == dict.fromkeys(range(pairs), each)


def test_raters_who_share_pairs_are_mixed():
    names = [f"rater {index}" for index in range(6)]
    dealt = study.plan(0, 150, names, 2)
    shared = {pair: len(set(dealt[pair[0]]) & set(dealt[pair[1]])) for pair in itertools.combinations(names, 2)}
    # 150 pairs over 15 couples of raters: 10 each, and never none.
    assert min(shared.values()) >= 3
    assert sum(shared.values()) == 150


def test_orders_and_flips_are_fair_and_differ_by_rater_and_seed():
    flips = [study.is_flipped(seed, rater, pair) for seed in range(2) for rater in "ab" for pair in range(2500)]
    assert abs(sum(flips) - 5000) < 4 * 50  # four standard deviations of 10,000 fair coins
    by_rater = list(zip(flips[:2500], flips[2500:5000], strict=True))
    assert abs(sum(one == other for one, other in by_rater) - 1250) < 4 * 25
    orders = {tuple(study.rater_order(seed, rater, range(50))) for seed in range(2) for rater in "ab"}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert study.rater_order(3, "anna", range(6)) == study.rater_order(3, "anna", reversed(range(6)))


def test_the_same_on_every_machine():
    """Studies under way must not be dealt anew by another version."""
    assert study.rater_order(0, "anna", range(8)) == [3, 0, 1, 5, 7, 6, 2, 4]
    assert [study.is_flipped(0, "Žofie", pair) for pair in range(8)] == [
        True,
        False,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
