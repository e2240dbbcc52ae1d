"""The algebra behind DPO, by enumeration of a small categorical, to 1e-10.

    pi_r(y) = ref(y) exp(r(y) / beta) / Z,    r(y) = beta log(pi_r(y) / ref(y)) + beta log Z

(Rafailov et al. 2023, equations 4 to 6.)
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxalign import losses
from tests.tolerances import FLOAT64

ANSWERS = 7
numbers = arrays(np.float64, ANSWERS, elements=st.floats(-5, 5))
betas = st.floats(0.1, 3)
few = settings(max_examples=30, deadline=None)


def optimal_policy(rewards, reference, beta: float):
    """(log pi_r, log Z) of the KL-constrained reward maximisation, summed over all answers."""
    log_partition = jnp.log(jnp.sum(jnp.exp(reference) * jnp.exp(rewards / beta)))
    return reference + rewards / beta - log_partition, log_partition


@given(numbers, numbers, betas)
@few
def test_the_optimal_policy_is_a_distribution_and_gives_its_reward_back(rewards, logits, beta: float) -> None:
    with jax.enable_x64(True):
        reference = jax.nn.log_softmax(jnp.asarray(logits))
        policy, log_partition = optimal_policy(jnp.asarray(rewards), reference, beta)
        np.testing.assert_allclose(jnp.sum(jnp.exp(policy)), 1, rtol=FLOAT64)
        recovered = losses.implicit_reward(policy, reference, beta=beta) + beta * log_partition
        np.testing.assert_allclose(recovered, rewards, rtol=FLOAT64, atol=FLOAT64)


@given(numbers, numbers, betas)
@few
def test_dpo_of_the_optimal_policy_is_bradley_terry_of_the_reward(rewards, logits, beta: float) -> None:
    with jax.enable_x64(True):
        rewards, reference = jnp.asarray(rewards), jax.nn.log_softmax(jnp.asarray(logits))
        policy, _ = optimal_policy(rewards, reference, beta)
        first, second = (index.ravel() for index in jnp.indices((ANSWERS, ANSWERS)))
        direct = losses.dpo(policy[first], policy[second], reference[first], reference[second], beta=beta)
        through_reward = losses.bradley_terry(rewards[first], rewards[second])
        np.testing.assert_allclose(jnp.exp(-direct), jnp.exp(-through_reward), rtol=FLOAT64, atol=FLOAT64)


def test_plackett_luce_of_the_optimal_policy() -> None:
    """Ranking by implicit rewards is ranking by rewards: log Z cancels there too."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        rewards, reference = (
            jnp.asarray(rng.normal(size=ANSWERS)),
            jax.nn.log_softmax(jnp.asarray(rng.normal(size=ANSWERS))),
        )
        policy, _ = optimal_policy(rewards, reference, 0.3)
        implicit = losses.implicit_reward(policy, reference, beta=0.3)
        ranked, everyone = jnp.argsort(-rewards)[None], jnp.ones((1, ANSWERS), bool)
        value = losses.plackett_luce(implicit[ranked], everyone)
        np.testing.assert_allclose(value, losses.plackett_luce(rewards[ranked], everyone), rtol=FLOAT64)


def test_no_policy_has_a_higher_constrained_reward() -> None:
    """E[r] - beta KL is beta log Z at pi_r, and less for any other policy."""
    rng = np.random.default_rng(1)
    beta = 0.5
    with jax.enable_x64(True):
        rewards, reference = (
            jnp.asarray(rng.normal(size=ANSWERS)),
            jax.nn.log_softmax(jnp.asarray(rng.normal(size=ANSWERS))),
        )

        def objective(policy):
            kl = losses.kl_estimate(policy, reference, estimator="k1")
            return jnp.sum(jnp.exp(policy) * (rewards - beta * kl))

        best, log_partition = optimal_policy(rewards, reference, beta)
        np.testing.assert_allclose(objective(best), beta * log_partition, rtol=FLOAT64)
        for seed in range(20):
            other = jax.nn.log_softmax(best + 0.1 * jax.random.normal(jax.random.key(seed), (ANSWERS,), jnp.float64))
            assert objective(other) < objective(best)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_minimising_over_all_pairs_finds_the_optimal_policy(loss: str) -> None:
    """Expected DPO under Bradley-Terry labels is stationary at pi_r; so is IPO under linear preferences."""
    rng = np.random.default_rng(2)
    beta = 0.4
    with jax.enable_x64(True):
        rewards, reference = (
            jnp.asarray(rng.normal(size=ANSWERS)),
            jax.nn.log_softmax(jnp.asarray(rng.normal(size=ANSWERS))),
        )
        first, second = (index.ravel() for index in jnp.indices((ANSWERS, ANSWERS)))
        if loss == "dpo":
            preferred = jax.nn.sigmoid(rewards[first] - rewards[second])
            best, _ = optimal_policy(rewards, reference, beta)
        else:
            # Preferences linear in a utility u: per pair the minimum is h = (p - 1/2) / beta = (u_i - u_j) / beta.
            utility = rewards / 20
            preferred = 0.5 + utility[first] - utility[second]
            best, _ = optimal_policy(utility, reference, beta)

        def expected_loss(logits):
            policy = jax.nn.log_softmax(logits)
            values = getattr(losses, loss)(
                policy[first], policy[second], reference[first], reference[second], beta=beta
            )
            return jnp.sum(preferred * values)

        np.testing.assert_allclose(jax.grad(expected_loss)(best), np.zeros(ANSWERS), atol=FLOAT64)
