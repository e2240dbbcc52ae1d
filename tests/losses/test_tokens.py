"""Token and sequence log-probabilities: masks, padding, order; the KL estimators; LD-DPO's weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign.losses import (
    cross_entropy,
    dpo,
    kl_estimate,
    length_desensitised_weights,
    masked_mean,
    sequence_log_prob,
    token_log_probs,
    unlikelihood,
)
from tests.tolerances import FLOAT32, FLOAT64

few = settings(max_examples=40, deadline=None)
log_probs = arrays(np.float32, (3, 6), elements=st.floats(-20, 0, width=32))
masks = arrays(np.bool_, (3, 6))


def close(actual, expected, tolerance: float = FLOAT32) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@given(log_probs, masks, st.booleans())
@few
def test_sequence_log_prob_is_the_slice(x: np.ndarray, mask: np.ndarray, average: bool) -> None:
    expected = [row[kept].sum() / (max(kept.sum(), 1) if average else 1) for row, kept in zip(x, mask, strict=True)]
    close(sequence_log_prob(x, mask, average=average), expected)


@given(log_probs, masks, st.integers(0, 5), st.booleans(), st.booleans())
@few
def test_padding_length_and_side_change_nothing(x, mask, amount: int, left: bool, average: bool) -> None:
    widths = ((0, 0), (amount, 0) if left else (0, amount))
    padded = sequence_log_prob(np.pad(x, widths, constant_values=-99), np.pad(mask, widths), average=average)
    close(padded, sequence_log_prob(x, mask, average=average))


@given(log_probs, masks, st.permutations(range(6)))
@few
def test_order_of_tokens_changes_nothing(x, mask, order: list[int]) -> None:
    close(sequence_log_prob(x[:, order], mask[:, order]), sequence_log_prob(x, mask))


@pytest.mark.parametrize("loss", [cross_entropy, unlikelihood])
def test_token_losses_over_micro_batches(loss) -> None:
    rng = np.random.default_rng(0)
    x, mask = -rng.exponential(size=(8, 6)).astype(np.float32), rng.random((8, 6)) < 0.5
    whole = masked_mean(loss(x), mask)
    parts = [jnp.sum(jnp.where(mask[i : i + 2], loss(x[i : i + 2]), 0)) for i in range(0, 8, 2)]
    close(sum(parts) / mask.sum(), whole)


def test_token_log_probs_normalise() -> None:
    logits = np.random.default_rng(0).normal(size=(5,)) * 10
    with jax.enable_x64(True):
        all_tokens = token_log_probs(jnp.broadcast_to(jnp.asarray(logits), (5, 5)), jnp.arange(5))
        close(jnp.exp(all_tokens).sum(), 1, FLOAT64)


def test_token_log_probs_of_extreme_logits() -> None:
    logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    targets = jnp.asarray([1, 2])
    close(token_log_probs(logits, targets), [-2e4, -np.log(3)])
    gradient = jax.grad(lambda logits: token_log_probs(logits, targets).sum())(logits)
    assert jnp.isfinite(gradient).all()


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1000)), jnp.bfloat16)
    value = token_log_probs(logits, jnp.asarray([3]))
    assert value.dtype == jnp.float32
    close(value, token_log_probs(logits.astype(jnp.float32), jnp.asarray([3])))


def test_unlikelihood_is_bounded_where_the_token_is_certain() -> None:
    value, gradient = jax.value_and_grad(unlikelihood)(0.0)
    assert value == pytest.approx(-np.log(1e-6), rel=1e-4)
    assert jnp.isfinite(gradient)
    assert unlikelihood(-1e4) == 0


def test_kl_estimators_by_enumeration() -> None:
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        policy, reference = (jax.nn.log_softmax(jnp.asarray(rng.normal(size=7))) for _ in range(2))
        p = jnp.exp(policy)
        kl = jnp.sum(p * (policy - reference))
        for estimator in ("k1", "k3"):
            close(jnp.sum(p * kl_estimate(policy, reference, estimator=estimator)), kl, FLOAT64)


@given(st.floats(-60, 60, width=32))
@settings(max_examples=200, deadline=None)
def test_k2_and_k3_are_not_negative(difference: float) -> None:
    for estimator in ("k2", "k3"):
        value, slope = jax.value_and_grad(lambda x, e=estimator: kl_estimate(x, jnp.float32(0), estimator=e))(
            jnp.float32(difference)
        )
        assert value >= 0
        # Both fall towards 0 from either side; beyond the clamp the slope is 0, never of the wrong sign.
        assert slope * difference >= 0


@pytest.mark.parametrize("x", [1e-8, 1e-4, 0.0999, 0.1001, 1.0, -1e-6, -0.0999, -0.1001, -15.0])
def test_k3_does_not_cancel(x: float) -> None:
    # The alternating series in exact arithmetic: sum of x^n (-1)^n / n! from n = 2.
    from fractions import Fraction

    exact, term = Fraction(0), Fraction(1)
    for n in range(1, 120):
        term *= -Fraction(x) / n
        exact += term if n > 1 else 0
    with jax.enable_x64(True):
        value = kl_estimate(jnp.float64(x), jnp.float64(0), estimator="k3")
    assert float(value) == pytest.approx(float(exact), rel=FLOAT64)


def test_kl_estimate_names_its_estimators() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(jnp.zeros(2), jnp.zeros(2), estimator="k4")  # type: ignore[arg-type]


def test_length_desensitised_weights() -> None:
    chosen, rejected = jnp.arange(5) < 5, jnp.arange(5) < 2
    shorter = jnp.minimum(chosen.sum(), rejected.sum())
    index = jnp.cumsum(chosen) - 1
    close(length_desensitised_weights(index, shorter, alpha=0.25), [1, 1, 0.25, 0.25, 0.25])
    close(length_desensitised_weights(index, shorter, alpha=1.0), jnp.ones(5))
    with pytest.raises(ValueError, match="alpha"):
        length_desensitised_weights(index, shorter, alpha=1.5)


def test_length_desensitised_dpo_ignores_the_surplus_at_zero() -> None:
    rng = np.random.default_rng(0)
    x = {name: -rng.exponential(size=5).astype(np.float32) for name in itertools.product("pr", "wl")}
    mask = {"w": np.arange(5) < 5, "l": np.arange(5) < 3}

    def loss(alpha: float, tokens: dict) -> float:
        summed = []
        for model, answer in itertools.product("pr", "wl"):
            weights = length_desensitised_weights(jnp.arange(5), jnp.int32(3), alpha=alpha)
            summed.append(sequence_log_prob(tokens[model, answer] * weights, mask[answer]))
        return float(dpo(summed[0], summed[1], summed[2], summed[3], beta=0.1))

    changed = {key: np.where(np.arange(5) < 3, tokens, -7.0).astype(np.float32) for key, tokens in x.items()}
    changed["p", "w"][3:] = -1.0
    assert loss(0.0, x) == pytest.approx(loss(0.0, changed), rel=FLOAT32)
    assert loss(0.5, x) != pytest.approx(loss(0.5, changed), rel=1e-3)
