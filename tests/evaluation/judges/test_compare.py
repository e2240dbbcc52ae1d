"""Comparing: the order drawn by content, outcomes from our side, each question once."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from jaxalign.evaluation.judges import Item, Verdict, VerdictCache, compare, shown


class Told:
    """A judge that answers by a function of the comparison, and counts what it is asked."""

    name, version = "told", "1"

    def __init__(self, preference):
        self.preference = preference if callable(preference) else lambda _: preference
        self.asked = []

    def judge(self, comparisons, on_verdict):
        self.asked += comparisons
        for index, one in reversed(list(enumerate(comparisons))):
            on_verdict(index, Verdict(preference=self.preference(one), text=f"on {one.first}"))


def items(count, axis="overall"):
    return [Item(prompt=f"prompt {i}", ours=f"a {i}", theirs=f"b {i % 7}", axis=axis) for i in range(count)]


def longer(comparison):
    first, second = len(comparison.first), len(comparison.second)
    return "tie" if first == second else "first" if first > second else "second"


def swapped(item):
    return replace(item, ours=item.theirs, theirs=item.ours, names=item.names[::-1])


def outcomes(judged):
    return [one.outcome for one in judged]


def test_outcomes_are_from_our_side_whatever_the_order():
    some = items(120)
    judged = compare(Told(longer), some, seed=3)
    expected = {1: "win", 0: "tie", -1: "lose"}
    assert outcomes(judged) == [expected[(len(i.ours) > len(i.theirs)) - (len(i.ours) < len(i.theirs))] for i in some]
    assert {one.flipped for one in judged} == {False, True}
    for one in judged:
        assert one.verdict.text == f"on {one.item.theirs if one.flipped else one.item.ours}"


def test_the_order_is_a_function_of_seed_and_content():
    some = items(400)
    orders = [shown(item, 0) for item in some]
    assert [shown(item, 0) for item in some[::-1]] == orders[::-1]
    assert [one.flipped for one in compare(Told("first"), some[50:90], seed=0)] == [flip for _, flip in orders[50:90]]
    other = [shown(item, 1)[1] for item in some]
    differ = sum(flip != one for (_, flip), one in zip(orders, other, strict=True))
    for count in (differ, sum(other), sum(flip for _, flip in orders)):  # half of them, within four deviations
        assert abs(count - 200) < 4 * math.sqrt(400 / 4)
    assert all(shown(replace(item, names=("x", "y")), 0) == shown(item, 0) for item in some)


def test_swapping_the_models_mirrors_every_outcome():
    some = items(200)
    judge = Told(lambda one: ["first", "second", "tie", "invalid"][sum((one.first + one.prompt).encode()) % 4])
    mirror = {"win": "lose", "lose": "win", "tie": "tie", "invalid": "invalid"}
    there = compare(judge, some, seed=5)
    back = compare(judge, [swapped(item) for item in some], seed=5)
    assert outcomes(back) == [mirror[outcome] for outcome in outcomes(there)]
    assert len(set(outcomes(there))) == 4
    assert judge.asked[:200] == judge.asked[200:]


@pytest.mark.parametrize("letter", ["first", "second"])
def test_a_judge_that_always_says_one_letter_scores_a_half(letter):
    wins = Counter(outcomes(compare(Told(letter), items(2000), seed=11)))
    assert set(wins) == {"win", "lose"}
    assert abs(wins["win"] / 2000 - 0.5) < 1.96 * math.sqrt(0.25 / 2000)


def test_invalid_answers_are_outcomes_of_their_own():
    judge = Told(lambda one: "invalid" if one.prompt.endswith("3") else longer(one))
    counts = Counter(outcomes(compare(judge, items(100), seed=0)))
    assert counts["invalid"] == 10
    assert sum(counts.values()) == 100


def test_equal_questions_are_asked_once():
    judge = Told(longer)
    some = items(5)
    seen = []
    repeated = [*some, *some, *map(swapped, some)]
    judged = compare(judge, repeated, seed=0, on_progress=lambda done, total: seen.append((done, total)))
    assert len(judge.asked) == 5
    assert outcomes(judged[:5]) == outcomes(judged[5:10])
    assert seen == [(3, 15), (6, 15), (9, 15), (12, 15), (15, 15)]
    compare(judge, [*items(5), *items(5, axis="coverage")], seed=0)
    assert len(judge.asked) == 15


def test_outputs_that_are_the_same_text_are_a_tie_that_nobody_is_asked_about(tmp_path):
    judge, seen = Told("first"), []
    some = [*items(2), Item(prompt="p", ours="same", theirs="same")]
    with VerdictCache(tmp_path / "verdicts.sqlite") as cache:
        for kept in (None, cache):
            judged = compare(judge, some, seed=0, cache=kept, on_progress=lambda *counts: seen.append(counts))
            assert (judged[2].outcome, judged[2].verdict.preference, judged[2].flipped) == ("tie", "tie", False)
    assert [one.prompt for one in judge.asked] == ["prompt 0", "prompt 1"] * 2
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_nothing_to_compare():
    judge = Told("first")
    assert compare(judge, [], seed=0) == []
    assert not judge.asked


@pytest.mark.parametrize("cached", [False, True])
def test_a_judge_that_breaks_the_protocol_is_told_so(tmp_path, cached):
    class Silent(Told):
        def judge(self, comparisons, on_verdict):
            super().judge(comparisons[1:], on_verdict)

    class Twice(Told):
        def judge(self, comparisons, on_verdict):
            super().judge(comparisons, on_verdict)
            super().judge(comparisons, on_verdict)

    for broken, message in (
        (Silent("first"), r"told no verdict on 1 of 4"),
        (Twice("first"), "two verdicts on one comparison"),
        (Told("third"), "'third' is none of first, second, tie, invalid"),
    ):
        cache = VerdictCache(tmp_path / f"{message[:5]}.sqlite") if cached else None
        with pytest.raises((RuntimeError, ValueError), match=message):
            compare(broken, items(4), seed=0, cache=cache)
