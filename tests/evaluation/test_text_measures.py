"""Measures of text and likelihood by hand; their bounds and errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.errors import InputError
from jaxalign.evaluation import (
    calibration,
    distinct_n,
    distinct_n_interval,
    length_statistics,
    ngram_entropy,
    perplexity,
    repetition,
    reward_accuracy,
    sample_distance,
)
from tests.tolerances import COVERAGE, FLOAT64

TEXTS = st.lists(st.sampled_from(["a", "b", "A", "c d", "\n", ""]), max_size=8).map(" ".join)


def test_entropy_by_hand():
    assert ngram_entropy(["the cat", "The dog"], 1) == pytest.approx(
        -(0.5 * math.log(0.5) + 0.5 * math.log(0.25)), abs=FLOAT64
    )
    assert ngram_entropy(["a a a a"], 2) == 0.0
    assert ngram_entropy(["a b c d"], 1) == pytest.approx(math.log(4), abs=FLOAT64)
    assert ngram_entropy(["a", ""], 3) == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        ngram_entropy([], 0)


def test_distinct_n_with_its_interval_by_hand():
    texts = ["a b", "a c", "d"]  # 4 of 5 words; without each text 3/3, 3/3, 3/4
    found = distinct_n_interval(texts, 1)
    without = np.array([1, 1, 3 / 4])
    deviation = math.sqrt(2 / 3 * np.sum((without - without.mean()) ** 2))
    reach = 4.302652729911275 * deviation  # Student's t with two degrees of freedom, 97.5 %
    assert found.estimate == pytest.approx(distinct_n(texts, 1), abs=FLOAT64)
    assert found.low == pytest.approx(4 / 5 - reach, abs=FLOAT64)
    assert found.high == 1.0  # a share is at most 1
    assert distinct_n_interval([*texts, ""], 1, groups=[0, 1, 2, 2]) == found
    with pytest.raises(InputError, match="two groups"):
        distinct_n_interval(["a", "b"], 1, groups=[0, 0])
    with pytest.raises(InputError, match="2 texts but 1 groups"):
        distinct_n_interval(["a", "b"], 1, groups=[0])


def test_the_interval_of_many_texts_takes_no_time():
    texts = [" ".join(f"w{index * place}" for place in range(50)) for index in range(4000)]
    found = distinct_n_interval(texts, 2)  # a second; minutes where the counts of all are added up anew for each
    assert found.low < found.estimate < found.high


def test_the_interval_of_distinct_n_covers():
    """Prompts of two samples that share a topic: at least the coverage that it names, never much less."""
    random = np.random.default_rng(0)
    shares = 1 / np.arange(1, 401)
    words = np.arange(400).astype(str)

    def draw():
        texts = []
        for _ in range(30):
            topic = random.choice(words, 6)
            for _ in range(2):
                common = random.choice(words, 12, p=shares / shares.sum())
                texts.append(" ".join(np.where(random.random(12) < 0.3, random.choice(topic, 12), common)))
        return texts

    truth = np.mean([distinct_n(draw(), 2) for _ in range(400)])
    found = [distinct_n_interval(draw(), 2, groups=np.repeat(np.arange(30), 2).tolist()) for _ in range(400)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.95 - COVERAGE


def test_repetition_by_hand():
    texts = ["a b a b a b", "a b c d", "a", ""]  # ab ba ab ba ab: two of five are new
    np.testing.assert_allclose(repetition(texts, n=2), [3 / 5, 0, 0, 0], atol=FLOAT64)
    assert repetition([]).shape == (0,)


def test_distance_between_samples_by_hand():
    texts = ["a b c", "a b d", "x y", "X Y", "alone", "a b c"]
    # Prompt 1: three samples, {ab, bc}, {ab, bd}, {ab, bc}: distances 2/3, 0, 2/3. Prompt 2: the same text.
    found = sample_distance(texts, [1, 1, 2, 2, 3, 1])
    np.testing.assert_allclose(found, [4 / 9, 0], atol=FLOAT64)
    np.testing.assert_array_equal(sample_distance(["", "", "a b", "c d"], [1, 1, 2, 2]), [0, 1])
    with pytest.raises(InputError, match="1 texts but 2 groups"):
        sample_distance(["a"], [1, 2])


def test_more_samples_of_a_kind_do_not_shrink_the_distance():
    generator = np.random.default_rng(0)
    few, many = ([" ".join(generator.choice(list("abcdefgh"), 12)) for _ in range(count)] for count in (20, 200))
    assert sample_distance(many, [0] * 200)[0] == pytest.approx(sample_distance(few, [0] * 20)[0], abs=0.02)
    assert distinct_n(many, 2) < 0.5 * distinct_n(few, 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=6), st.integers(1, 3))
def test_bounds(texts, n):
    assert 0 <= ngram_entropy(texts, n) <= math.log(max(sum(len(text.split()) for text in texts), 1)) + FLOAT64
    assert all(0 <= value < 1 for value in repetition(texts, n=n))
    assert 0 <= sample_distance(texts, [0] * len(texts), n=n)[0] <= 1
    assert sample_distance([texts[0]] * 2, [0, 0], n=n)[0] == 0


def test_lengths_by_hand():
    found = length_statistics(["a b c", "", " a ", "a b", "a b c d"])
    assert (found.texts, found.mean, found.median, found.shortest, found.longest, found.empty) == (5, 2.0, 2.0, 0, 4, 1)
    assert found.standard_deviation == pytest.approx(math.sqrt(10 / 4), abs=FLOAT64)
    assert (found.percentile_5, found.percentile_95) == (pytest.approx(0.2), pytest.approx(3.8))
    assert length_statistics(["a b"]).standard_deviation == 0.0
    with pytest.raises(InputError, match="no texts"):
        length_statistics([])


def test_perplexity_counts_tokens_alike():
    rows = [[math.log(0.5)] * 3, [math.log(0.25)], []]
    assert perplexity(rows).estimate == pytest.approx(math.exp((3 * math.log(2) + math.log(4)) / 4), abs=FLOAT64)
    assert perplexity([[math.log(1 / 7)] * n for n in (1, 5, 2)]).high == pytest.approx(7, abs=FLOAT64)


def test_perplexity_covers_and_groups_widen():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(1000):
        hard = generator.normal(0, 0.3, 60)
        rows = [-np.abs(generator.normal(2 + own, 0.1, 5)) for own in hard]
        found = perplexity(rows, resamples=300, seed=seed)
        hits += found.low <= math.exp(2) <= found.high
    assert abs(hits / 1000 - 0.95) < COVERAGE
    repeated, groups = [row for row in rows for _ in range(4)], np.repeat(np.arange(60), 4).tolist()
    alone, grouped = perplexity(repeated), perplexity(repeated, groups=groups)
    assert grouped.estimate == pytest.approx(alone.estimate, rel=FLOAT64)
    assert grouped.high - grouped.low > 1.7 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "at least two texts with tokens, got 0"),
        ([[-1.0], []], {}, "at least two texts with tokens, got 1"),
        ([[-1.0], [math.nan]], {}, "text 1 has a log-prob that is not finite"),
        ([[0.5], [-1.0]], {}, "text 0 has a log-prob that is not finite or above 0"),
        ([[-1.0], [-1.0]], {"groups": [1]}, "2 texts but 1 groups"),
    ],
)
def test_bad_log_probs_are_named(rows, options, message):
    with pytest.raises(InputError, match=message):
        perplexity(rows, **options)


def test_reward_accuracy_is_that_of_calibration():
    chosen, rejected = np.array([1.0, 0.5, 2.0, 1.0, 0.0]), np.array([0.0, 0.5, 1.0, 2.0, -1.0])
    found, same = reward_accuracy(chosen, rejected), calibration(chosen - rejected)
    assert (found.estimate, found.low, found.high) == (same.accuracy, same.low, same.high)
    assert found.estimate == pytest.approx(3.5 / 5, abs=FLOAT64)
    for bad in (([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])):
        with pytest.raises(InputError, match="as many finite rewards"):
            reward_accuracy(*bad)
