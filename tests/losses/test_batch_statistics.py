"""Losses that need a statistic of the batch: KTO's reference point, BCO's shift, AOT's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from tests.tolerances import FLOAT32

rng = np.random.default_rng(5)
FOUR = [jnp.asarray(rng.normal(size=8) * 3, jnp.float32) for _ in range(4)]


def test_reference_points_are_statistics_without_gradient() -> None:
    mask = jnp.arange(8) < 5
    kl, gradient = jax.value_and_grad(lambda p: losses.kto_reference_kl(p, FOUR[2], mask))(FOUR[0])
    assert kl == pytest.approx(max(0.0, float((FOUR[0] - FOUR[2])[:5].mean())), rel=FLOAT32)
    assert not gradient.any()
    assert losses.kto_reference_kl(FOUR[0] - 100, FOUR[2], mask) == 0
    shift, gradient = jax.value_and_grad(lambda p: losses.bco_shift(p, *FOUR[1:], mask, beta=0.3))(FOUR[0])
    rewards = 0.3 * jnp.concatenate([(FOUR[0] - FOUR[2])[:5], (FOUR[1] - FOUR[3])[:5]])
    assert shift == pytest.approx(float(rewards.mean()), rel=FLOAT32)
    assert not gradient.any()
    assert losses.bco_shift(*FOUR, jnp.zeros(8, bool), beta=0.3) == 0


def test_no_gradient_through_the_reference_point() -> None:
    desirable = jnp.arange(8) % 2 == 0

    def by_point(point):
        return losses.kto(FOUR[0], FOUR[2], desirable, beta=0.2, reference_kl=point).sum()

    assert jax.grad(by_point)(0.3) == 0
    assert jax.grad(lambda shift: losses.bco(*FOUR, beta=0.2, shift=shift).sum())(0.3) == 0


def test_kto_and_bco_with_the_global_statistic_do_not_see_the_batch_split() -> None:
    desirable = jnp.arange(8) % 2 == 0
    point = losses.kto_reference_kl(FOUR[0], FOUR[2], jnp.ones(8, bool))
    whole = losses.kto(FOUR[0], FOUR[2], desirable, beta=0.2, reference_kl=point)
    parts = [
        losses.kto(FOUR[0][i : i + 2], FOUR[2][i : i + 2], desirable[i : i + 2], beta=0.2, reference_kl=point)
        for i in range(0, 8, 2)
    ]
    np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=FLOAT32)
    shift = losses.bco_shift(*FOUR, jnp.ones(8, bool), beta=0.2)
    per_row = jnp.broadcast_to(shift, (8,))
    np.testing.assert_allclose(
        losses.bco(*FOUR, beta=0.2, shift=per_row), losses.bco(*FOUR, beta=0.2, shift=shift), rtol=FLOAT32
    )


@pytest.mark.parametrize("loss", [losses.aot, losses.aot_unpaired])
def test_a_masked_row_is_an_absent_row(loss) -> None:
    kept = np.asarray([0, 2, 3, 6])
    mask = jnp.zeros(8, bool).at[kept].set(True)
    poisoned = [jnp.where(mask, x, jnp.nan) for x in FOUR]

    def masked_total(*x):
        return loss(*x, beta=0.3, mask=mask).sum()

    value, gradient = jax.value_and_grad(masked_total, (0, 1, 2, 3))(*poisoned)
    sliced = jax.value_and_grad(lambda *x: loss(*x, beta=0.3).sum(), (0, 1, 2, 3))(*(x[kept] for x in FOUR))
    np.testing.assert_allclose(value, sliced[0], rtol=FLOAT32)
    for masked, expected in zip(gradient, sliced[1], strict=True):
        np.testing.assert_allclose(masked[kept], expected, rtol=FLOAT32, atol=FLOAT32)
        assert not masked[~mask].any()
    empty, gradient = jax.value_and_grad(lambda x: loss(x, *FOUR[1:], beta=0.3, mask=jnp.zeros(8, bool)).sum())(FOUR[0])
    assert empty == 0
    assert not gradient.any()


def test_aot_takes_one_axis() -> None:
    with pytest.raises(AssertionError):
        losses.aot(*(x.reshape(2, 4) for x in FOUR), beta=0.3)


def test_plackett_luce_of_two_is_bradley_terry() -> None:
    chosen, rejected = FOUR[:2]
    ranking = jnp.stack([chosen, rejected], axis=-1)
    value = losses.plackett_luce(ranking, jnp.ones((8, 2), bool))
    np.testing.assert_allclose(value, losses.bradley_terry(chosen, rejected), rtol=FLOAT32, atol=FLOAT32)


def test_plackett_luce_is_a_distribution_over_rankings() -> None:
    from itertools import permutations

    rewards = rng.normal(size=4)
    orders = np.asarray(list(permutations(range(4))))
    value = losses.plackett_luce(jnp.asarray(rewards[orders], jnp.float32), jnp.ones(orders.shape, bool))
    assert jnp.exp(-value).sum() == pytest.approx(1, rel=FLOAT32)


def test_bradley_terry_margin_a_row() -> None:
    margin = jnp.asarray([0.0, 1.0])
    scores = jnp.asarray([2.0, 2.0]), jnp.asarray([1.0, 1.0])
    value = losses.bradley_terry(*scores, margin=margin)
    assert value[0] == losses.bradley_terry(*scores)[0] < value[1] == pytest.approx(np.log(2), rel=FLOAT32)
    with pytest.raises(AssertionError):
        losses.bradley_terry(*scores, margin=jnp.zeros(3))
