"""Sequence-level KL against exact enumeration."""

import itertools

import numpy as np
import pytest

from jaxalign.evaluation import distinct_n, sequence_kl
from tests.tolerances import FLOAT32, FLOAT64


def two_step_model(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First-token log-probs [3] and second-token log-probs given the first [3, 3]."""
    logits = np.random.default_rng(seed).normal(size=(4, 3))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs[0], log_probs[1:]


def test_both_estimators_average_to_the_sequence_kl():
    """Every sequence, weighted by its probability under the policy, gives KL(policy || reference) exactly."""
    policy, reference = two_step_model(0), two_step_model(1)
    sequences = list(itertools.product(range(3), repeat=2))

    def of(model):
        return np.array([[model[0][a], model[1][a, b]] for a, b in sequences])

    weights = np.exp(of(policy).sum(axis=1))
    exact = (weights * (of(policy) - of(reference)).sum(axis=1)).sum()
    found = sequence_kl(of(policy), of(reference), np.ones((9, 2), bool))
    assert (weights * found.k1_per_sequence).sum() == pytest.approx(exact, abs=FLOAT64)
    assert (weights * found.k3_per_sequence).sum() == pytest.approx(exact, rel=FLOAT32)
    assert (found.k3_per_sequence >= 0).all()
    assert found.k1_per_sequence.min() < 0  # so k1 and k3 do differ here


def test_what_is_masked_is_not_read():
    policy = np.array([[-1.0, -2.0, np.nan], [-0.5, np.inf, -9.0]])
    reference = np.array([[-1.5, -1.0, -np.inf], [-1.5, 0.0, 4.0]])
    found = sequence_kl(policy, reference, [[True, True, False], [True, False, False]])
    np.testing.assert_allclose(found.k1_per_sequence, [-0.5, 1.0], rtol=FLOAT64)
    assert found.k1.estimate == pytest.approx(0.25, abs=FLOAT64)


def test_the_reference_itself_is_at_zero():
    log_probs = np.random.default_rng(0).normal(size=(6, 4)) - 3
    found = sequence_kl(log_probs, log_probs, np.ones((6, 4), bool), groups=[0, 0, 1, 1, 2, 2])
    assert (found.k1.estimate, found.k1.low, found.k1.high) == (0.0, 0.0, 0.0)
    assert found.k3.estimate == 0.0


def test_groups_widen_the_interval():
    """Sequences of a prompt that agree carry one prompt's worth of evidence."""
    policy = np.repeat(np.random.default_rng(0).normal(size=(20, 1)), 8, axis=0)
    mask = np.ones((160, 1), bool)
    alone = sequence_kl(policy, np.zeros((160, 1)), mask).k1
    grouped = sequence_kl(policy, np.zeros((160, 1)), mask, groups=np.repeat(np.arange(20), 8)).k1
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(
    ("policy", "reference", "message"),
    [([[0.0, 0.0]], [[0.0]], "one shape"), ([[np.nan], [0.0]], [[0.0], [0.0]], "not finite")],
)
def test_bad_log_probs_are_refused(policy, reference, message):
    with pytest.raises(ValueError, match=message):
        sequence_kl(policy, reference, np.ones_like(np.asarray(policy), bool))


def test_distinct_n_counts_by_hand():
    texts = ["the cat the cat", "The dog"]
    assert distinct_n(texts, 1) == 3 / 6
    assert distinct_n(texts, 2) == 3 / 4  # the-cat twice, cat-the, the-dog; none across texts
    assert distinct_n(["one", ""], 2) == 0.0
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n(texts, 0)
