"""ROUGE against answers by hand, its symmetry and bounds; the share of copied n-grams."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.evaluation import copied_share, rouge

KINDS = ("rouge1", "rouge2", "rougeL")
# Few words, so that texts share some; characters that are no words, so that texts can be without any.
TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "cats", "Mat,", "...", "é", "\n"]), max_size=8).map(" ".join)


def test_identical_is_one_and_disjoint_is_zero():
    scores = rouge(["The cat sat down.", "The cat sat down."], ["the cat sat down", "two dogs ran away"])
    assert tuple(scores) == KINDS
    for values in scores.values():
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, [1.0, 0.0])


def test_by_hand():
    # 6 and 7 words: 6 words in common; 4 of 5 and 6 bigrams (on-the, the-mat, the-cat, cat-sat); 3 words in order.
    scores = rouge(["On the mat the cat sat."], ["The cat sat on the mat quietly."])
    assert {kind: values.item() for kind, values in scores.items()} == pytest.approx(
        {"rouge1": 12 / 13, "rouge2": 8 / 11, "rougeL": 6 / 13}
    )


def test_repeated_words_count_as_often_as_both_have_them():
    # 2 of 3 and 2 words, 1 of 2 and 1 bigrams.
    scores = rouge(["the the the"], ["the the"])
    assert scores["rouge1"].item() == pytest.approx(4 / 5)
    assert scores["rouge2"].item() == pytest.approx(2 / 3)


def test_words_are_stemmed():
    assert rouge(["he jumped houses"], ["he jumps house"])["rouge2"].item() == 1.0


def test_a_text_without_words_scores_zero():
    scores = rouge(["", "...", "cat", "漢字"], ["the cat", "...", "cat", "漢字"])
    np.testing.assert_array_equal(scores["rouge1"], [0.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(scores["rouge2"], np.zeros(4))


def test_kinds_are_chosen():
    scores = rouge(["a b\nc d"], ["c d\na b"], kinds=["rougeLsum", "rouge3"])
    assert list(scores) == ["rougeLsum", "rouge3"]
    assert scores["rougeLsum"].item() == 1.0
    assert [values.shape for values in rouge([], []).values()] == [(0,)] * 3
    with pytest.raises(ValueError, match="rougeX"):
        rouge(["a"], ["a"], kinds=["rougeX"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4))
def test_bounded_and_symmetric(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = rouge(first, second), rouge(second, first)
    for kind in KINDS:
        assert there[kind].shape == (len(pairs),)
        assert ((there[kind] >= 0) & (there[kind] <= 1)).all()
        np.testing.assert_array_equal(there[kind], back[kind])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        rouge(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="1 texts but 0 sources"):
        copied_share(["a"], [])


def test_missing_rouge_score_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(InputError, match=r"^rouge-score is not installed; run: pip install 'jaxalign\[eval\]'$"):
        rouge(["a"], ["a"])


def test_copied_share_by_hand():
    source = "The cat sat on the mat"
    texts = [source.upper(), "a dog ran off", "the cat sat down", "the cat sat the cat sat down", "the cat", ""]
    # Fourth: the-cat-sat twice of cat-sat-the, sat-the-cat, cat-sat-down and itself.
    np.testing.assert_allclose(copied_share(texts, [source] * len(texts)), [1, 0, 1 / 2, 2 / 5, 0, 0])
    np.testing.assert_allclose(copied_share(["the cat ran"], [source], n=1), [2 / 3])
    np.testing.assert_array_equal(copied_share(["the cat sat", "the cat sat"], ["the cat", ""]), [0, 0])
    assert copied_share([], []).shape == (0,)
    with pytest.raises(ValueError, match="n must be at least 1"):
        copied_share(["a"], ["a"], 0)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 4))
def test_copied_share_is_bounded_and_whole_for_a_part(text, source, n):
    share = copied_share([text, text], [source, f"{source} {text} {source}"], n)
    assert 0 <= share[0] <= share[1] <= 1
    assert share[1] == (len(text.split()) >= n)
