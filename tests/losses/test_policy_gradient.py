"""PPO's losses and estimators against closed forms, derivatives and the invariances they promise."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.test_util import check_grads

from jaxalign import losses
from tests.tolerances import FLOAT32, FLOAT64

rng = np.random.default_rng(3)
SHAPE = (5, 7)
LENGTHS = np.asarray([7, 3, 1, 0, 5])
MASK = np.arange(7) < LENGTHS[:, None]
OLD, NEW, REFERENCE = (rng.uniform(-4, -0.1, SHAPE) for _ in range(3))
ADVANTAGES, VALUES, OLD_VALUES, RETURNS = (rng.normal(size=SHAPE) for _ in range(4))
SCORES = rng.normal(size=5)


def close(found, wanted, tolerance=FLOAT64):
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_policy_loss(dual_clip):
    ratio = np.exp(NEW - OLD)
    wanted = np.maximum(-ratio * ADVANTAGES, -np.clip(ratio, 0.8, 1.2) * ADVANTAGES)
    if dual_clip is not None:
        wanted = np.where(ADVANTAGES < 0, np.minimum(wanted, -dual_clip * ADVANTAGES), wanted)
        assert (wanted <= np.where(ADVANTAGES < 0, -dual_clip * ADVANTAGES, np.inf)).all()
    close(losses.ppo_policy(NEW, OLD, ADVANTAGES, dual_clip=dual_clip), wanted)
    check_grads(lambda new: losses.ppo_policy(new, OLD, ADVANTAGES, dual_clip=dual_clip), (jnp.asarray(NEW),), order=1)
    # Old log-probs and advantages are constants.
    for argument in (1, 2):
        gradient = jax.grad(lambda *x: losses.ppo_policy(*x, dual_clip=dual_clip).sum(), argument)(NEW, OLD, ADVANTAGES)
        assert (gradient == 0).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_where_the_gradient_ends_is_what_the_clip_fraction_counts(dual_clip):
    gradient = jax.grad(lambda new: losses.ppo_policy(new, OLD, ADVANTAGES, dual_clip=dual_clip).sum())(NEW)
    clipped = losses.ppo_clipped(NEW, OLD, ADVANTAGES, dual_clip=dual_clip)
    assert 0 < clipped.sum() < clipped.size
    np.testing.assert_array_equal(gradient == 0, clipped)


@pytest.mark.usefixtures("float64")
def test_where_the_critics_gradient_ends_is_what_its_clip_fraction_counts():
    gradient = jax.grad(lambda new: losses.ppo_value(new, OLD_VALUES, RETURNS).sum())(VALUES)
    clipped = losses.ppo_value_clipped(VALUES, OLD_VALUES, RETURNS)
    assert 0 < clipped.sum() < clipped.size
    np.testing.assert_array_equal(gradient == 0, clipped)


@pytest.mark.usefixtures("float64")
def test_at_ratio_one_the_gradient_is_the_policy_gradient():
    found = jax.grad(lambda new: losses.ppo_policy(new, OLD, ADVANTAGES).sum())(jnp.asarray(OLD))
    close(found, -ADVANTAGES)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss(clip):
    error = (VALUES - RETURNS) ** 2
    moved = OLD_VALUES + np.clip(VALUES - OLD_VALUES, -0.2, 0.2)
    wanted = error / 2 if clip is None else np.maximum(error, (moved - RETURNS) ** 2) / 2
    close(losses.ppo_value(VALUES, OLD_VALUES, RETURNS, clip=clip), wanted)
    check_grads(lambda x: losses.ppo_value(x, OLD_VALUES, RETURNS, clip=clip), (jnp.asarray(VALUES),), order=1)


def advantages_by_definition(rewards, values, length, discount, gae_lambda):
    """A double sum of one-step errors, for one row."""
    after = np.append(values[1:length], 0.0)
    errors = rewards[:length] + discount * after - values[:length]
    decay = discount * gae_lambda
    return np.asarray([sum(decay ** (k - t) * errors[k] for k in range(t, length)) for t in range(length)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_advantages_are_the_double_sum(discount, gae_lambda):
    dirty = [np.where(MASK, array, np.nan) for array in (ADVANTAGES, VALUES)]
    found, returns = losses.generalised_advantages(*dirty, MASK, discount=discount, gae_lambda=gae_lambda)
    for row, length in enumerate(LENGTHS):
        wanted = advantages_by_definition(ADVANTAGES[row], VALUES[row], length, discount, gae_lambda)
        close(found[row, :length], wanted)
        close(returns[row, :length], wanted + VALUES[row, :length])
        assert (found[row, length:] == 0).all()
        assert (returns[row, length:] == 0).all()
    if (discount, gae_lambda) == (1.0, 1.0):  # the return is what is still to come, whatever the critic says
        close(returns[0], ADVANTAGES[0][::-1].cumsum()[::-1])


@pytest.mark.usefixtures("float64")
def test_a_hole_in_the_mask_is_passed_over():
    holes = np.ones((1, 7), bool)
    holes[0, [2, 5]] = False
    found, _ = losses.generalised_advantages(ADVANTAGES[:1], VALUES[:1], holes)
    closed, _ = losses.generalised_advantages(ADVANTAGES[:1, holes[0]], VALUES[:1, holes[0]], np.ones((1, 5), bool))
    close(found[0, holes[0]], closed[0])


@settings(max_examples=15, deadline=None)
@given(padding=st.integers(0, 4), order=st.permutations(range(5)))
def test_padding_and_the_order_of_rows_change_nothing(padding, order):
    def shaped(index, width):
        arrays = [np.pad(x[index], ((0, 0), (0, width - 7)), constant_values=np.nan) for x in (OLD, REFERENCE, VALUES)]
        mask = np.pad(MASK[index], ((0, 0), (0, width - 7)))
        rewards, mask = losses.kl_penalised_rewards(SCORES[index], *arrays[:2], mask, beta=0.3)
        return np.asarray(losses.generalised_advantages(rewards, arrays[2], mask)[0])

    whole, turned = shaped(np.arange(5), 7), shaped(np.asarray(order), 7 + padding)
    close(turned[:, :7], whole[order], FLOAT32)
    assert (turned[:, 7:] == 0).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("score_at", ["eos", "after_eos"])
def test_shaped_rewards(estimator, score_at):
    found, mask = losses.kl_penalised_rewards(
        SCORES, np.where(MASK, OLD, np.nan), np.where(MASK, REFERENCE, np.nan), MASK, beta=0.3, estimator=estimator,
        score_at=score_at,
    )  # fmt: skip
    d = OLD - REFERENCE
    kl = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}[estimator]
    wanted, wanted_mask = np.where(MASK, -0.3 * kl, 0), MASK.copy()
    for row, length in enumerate(LENGTHS):
        if length:
            at = min(length, 6) if score_at == "after_eos" else length - 1
            wanted[row, at] += SCORES[row]
            wanted_mask[row, at] = True
    close(found, wanted)
    np.testing.assert_array_equal(mask, wanted_mask)


def test_what_a_missing_eos_costs():
    finished = np.asarray([True, False, True, False, False])
    scores = SCORES.astype(np.float32)
    np.testing.assert_array_equal(losses.missing_eos_scores(scores, finished), scores)
    found = losses.missing_eos_scores(scores, finished, replace=-1.0)
    np.testing.assert_array_equal(found, np.where(finished, scores, np.float32(-1)))
    found = losses.missing_eos_scores(scores, finished, penalty=2.0)
    np.testing.assert_array_equal(found, np.where(finished, scores, scores - np.float32(2)))
    with pytest.raises(ValueError, match="one of the two"):
        losses.missing_eos_scores(scores, finished, replace=-1.0, penalty=1.0)


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1 + 0.1 * 0.25), (60.0, 1.05), (0.0, 0.95), (-3.0, 0.95)])
def test_the_adaptive_coefficient(kl, factor):
    """Still at its target, in proportion near it, by a fifth of episodes / horizon at most."""
    found = losses.adaptive_kl_coefficient(0.2, kl, target=6.0, episodes=64, horizon=256)
    close(found, 0.2 * factor, FLOAT32)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"soft_cap": 3.0}, {"bias": True}])
@pytest.mark.parametrize("chunk_size", [4, 16, 50])
def test_fused_entropy_is_the_dense_one(settings, chunk_size):
    hidden, kernel = rng.normal(size=(6, 8)).astype("f4"), rng.normal(size=(50, 8)).astype("f4")
    bias = rng.normal(size=50).astype("f4") if settings.get("bias") else None
    logits = hidden.astype("f8") @ kernel.T.astype("f8") + (0 if bias is None else bias)
    if "soft_cap" in settings:
        logits = 3.0 * np.tanh(logits / 3.0)
    logits = logits / settings.get("temperature", 1.0)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    found = losses.fused_token_entropy(hidden, kernel, chunk_size=chunk_size, **(settings | {"bias": bias}))
    close(found, -(p * np.log(p)).sum(-1), FLOAT32)


@pytest.mark.usefixtures("float64")
def test_a_ranking_without_ties_is_plackett_luce():
    rewards = np.sort(rng.normal(size=(4, 5)))[:, ::-1]
    beats = np.broadcast_to(np.triu(np.ones((5, 5), bool), 1), (4, 5, 5))
    close(losses.partial_plackett_luce(rewards, beats).sum(-1), losses.plackett_luce(rewards, np.ones((4, 5), bool)))


@pytest.mark.usefixtures("float64")
def test_answers_rated_alike_do_not_compete():
    rewards = jnp.asarray(rng.normal(size=3))
    beats = np.asarray([[False, False, True], [False, False, True], [False, False, False]])  # ratings 2, 2, 1
    found = losses.partial_plackett_luce(rewards, beats)
    close(found, [*losses.bradley_terry(rewards[:2], jnp.stack([rewards[2]] * 2)), 0.0])
    check_grads(lambda x: losses.partial_plackett_luce(x, beats), (rewards,), order=1)
