"""From ratings and verdicts to records; journals that were cut anywhere."""

import collections

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.recipes._journal import Journal, check_settings
from jaxalign.recipes._verdicts import Answers, Comparison, comparisons_of, make_records, win_shares

ANSWERS = Answers("p", ["a", "b", "", "b", "c"], [True, False, True, True, False])


def records(ratings, form, comparisons=None, **options):
    counts = collections.Counter()
    found = make_records(ANSWERS, ratings, comparisons, form, counts, **options)
    return found, {name: count for name, count in counts.items() if count}


def pairs(found):
    return [(row["chosen"], row["rejected"]) for row in found]


def test_ratings():
    found, counts = records([1, 2, None, 2, 0.5], "ratings")
    assert found == [
        {"prompt": "p", "responses": ["a", "b", "b", "c"], "ratings": [1, 2, 2, 0.5],
         "finished": [True, False, True, False]}
    ]  # fmt: skip
    assert counts == {}
    assert records([1, 1, None, 1, 1], "ratings")[1] == {"prompts with equal ratings": 1}
    assert records([1, None, 3, None, None], "ratings") == ([], {"prompts with fewer than two rated responses": 1})


@pytest.mark.parametrize(
    ("form", "expected", "tied"),
    [
        ("all", [("b", "a"), ("b", "c"), ("b", "a"), ("b", "c"), ("a", "c")], 1),
        ("best_worst", [("b", "c")], 0),
        ("adjacent", [("b", "a"), ("a", "c")], 1),
    ],
)
def test_pairs(form, expected, tied):
    found, counts = records([1, 2, None, 2, 0.5], form, margin=True)
    assert pairs(found) == expected
    assert counts.get("tied pairs", 0) == tied
    value = {"a": 1, "b": 2, "c": 0.5}
    assert [row["margin"] for row in found] == [value[one] - value[other] for one, other in expected]
    # Of the two responses "b" with the best rating the earlier, which was cut, comes first.
    assert (found[0]["chosen_finished"], found[0]["rejected_finished"]) == (form == "adjacent", form != "best_worst")


def test_one_text_is_no_pair():
    found, counts = records([None, 2, None, 1, None], "all")
    assert (found, counts) == ([], {"pairs of one text": 1})


def test_pairs_of_a_judge_are_those_it_judged():
    """Also where its verdicts go in a circle."""
    circle = [Comparison(0, 1, "first"), Comparison(4, 1, "second"), Comparison(4, 0, "first"), Comparison(3, 0, "tie")]
    shares = win_shares(5, circle)
    assert shares == [1.5 / 3, 0.5, None, 0.5, 0.5]
    found, counts = records(shares, "all", circle)
    assert pairs(found) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert counts == {"tied pairs": 1}
    assert records(shares, "best_worst", circle) == ([], {"tied pairs": 1})


def test_shares_leave_out_what_is_no_verdict():
    assert win_shares(3, [Comparison(0, 1, "invalid"), Comparison(1, 2, "skip"), Comparison(2, 0, "second")]) == [
        1.0, None, 0.0
    ]  # fmt: skip


def test_comparisons_are_all_pairs_of_different_texts_in_both_orders():
    generator = np.random.default_rng(0)
    several = [comparisons_of(ANSWERS, generator, 0) for _ in range(20)]
    for some in several:
        assert {frozenset((c.first, c.second)) for c in some} == {
            frozenset(pair) for pair in [(0, 1), (0, 3), (0, 4), (1, 4), (3, 4)]
        }
    share = np.mean([c.first < c.second for some in several for c in some])
    assert 0.3 < share < 0.7
    drawn = [comparisons_of(ANSWERS, generator, 2) for _ in range(20)]
    assert {len(some) for some in drawn} == {2}
    assert len({frozenset((c.first, c.second)) for some in drawn for c in some}) == 5


@pytest.mark.parametrize("cut", range(0, 130, 7))
def test_a_journal_goes_on_at_a_block(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    whole = Journal(path, total=5, block=2)
    for block in ([{"a": "é"}, {"a": 1}], [{"a": 2}, {"a": 3}], [{"a": 4}]):
        whole.append(block)
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    lines = content[:cut].count(b"\n")
    again = Journal(path, total=5, block=2)
    kept = lines if lines == 5 else lines // 2 * 2
    assert again.rows == whole.rows[:kept]
    again.append([{name: row[name] for name in ("a",)} for row in whole.rows[kept:]])
    assert path.read_bytes() == content


def test_a_journal_of_another_run(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, total=2, block=1).append([{"a": 0}, {"a": 1}])
    with pytest.raises(InputError, match="2 rows for 1 prompts: not of this run"):
        Journal(path, total=1, block=1)
    path.write_text('{"index": 0}\n{"index": 0}\n')
    with pytest.raises(InputError, match="line 2 is damaged"):
        Journal(path, total=2, block=1)
    path.write_text('{"index": 0\n')
    with pytest.raises(InputError, match="line 1 is damaged"):
        Journal(path, total=1, block=1)


def test_settings_are_compared(tmp_path):
    path = tmp_path / "c" / "settings.json"
    check_settings(path, {"top_k": 3}, begun=False)
    check_settings(path, {"top_k": 1, "the data": "x"}, begun=False)  # nothing was done with the others
    check_settings(path, {"top_k": 1, "the data": "x"}, begun=True)
    with pytest.raises(
        InputError, match=r"^--top-k: was 1 in the collection that is in .*c, is 2; use another --output"
    ):
        check_settings(path, {"top_k": 2, "the data": "x"}, begun=True)
    with pytest.raises(InputError, match=r"^the data: was 'x' .* is None"):
        check_settings(path, {"top_k": 1}, begun=True)
    path.write_text("{")
    with pytest.raises(InputError, match=r"settings\.json: not JSON"):
        check_settings(path, {}, begun=True)
