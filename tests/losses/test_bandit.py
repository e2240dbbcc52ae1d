"""PPO and DPO on a policy whose every response can be counted: the gradient, and where training ends.

The optimum of E[r] - beta KL(pi || ref) is pi*(y) = ref(y) exp(r(y) / beta) / Z. It is DPO's too: labels drawn with
sigmoid(r1 - r2) make beta (log-ratio 1 - log-ratio 2) match r1 - r2 on every pair, so the log-ratio is r / beta up to
one constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import losses
from tests.tolerances import FLOAT32, FLOAT64

BETA, VOCABULARY = 0.6, 4
# Token 0 is the EOS; responses have at most two tokens: the EOS alone, or a word and any token. 13 responses.
RESPONSES = np.asarray([[0, 0]] + [[a, b] for a in range(1, VOCABULARY) for b in range(VOCABULARY)])
MASK = np.asarray([[True, row[0] != 0] for row in RESPONSES])
rng = np.random.default_rng(4)
REWARDS = rng.normal(size=len(RESPONSES))
REFERENCE = {"first": rng.normal(size=VOCABULARY), "second": rng.normal(size=(VOCABULARY, VOCABULARY))}


def token_log_probs(policy, chosen=slice(None)):
    """``[n, 2]``, of the chosen responses."""
    tokens = RESPONSES[chosen] if isinstance(chosen, slice) else jnp.asarray(RESPONSES)[chosen]
    first = jax.nn.log_softmax(policy["first"])[tokens[:, 0]]
    second = jax.nn.log_softmax(policy["second"], -1)[tokens[:, 0], tokens[:, 1]]
    return jnp.stack([first, second], 1)


def log_probs(policy, chosen=slice(None)):
    mask = jnp.asarray(MASK)[chosen]
    return losses.sequence_log_prob(token_log_probs(policy, chosen), mask)


def optimum():
    weights = np.exp(np.asarray(log_probs(REFERENCE)) + REWARDS / BETA)
    return weights / weights.sum()


def distance(policy):
    """Total variation to the optimum."""
    return 0.5 * np.abs(np.exp(np.asarray(log_probs(policy))) - optimum()).sum()


def rollout(policy, chosen=slice(None)):
    """Old log-probs and advantages of responses: k1, lambda 1, no critic, no whitening."""
    old, mask = token_log_probs(policy, chosen), jnp.asarray(MASK)[chosen]
    rewards, mask = losses.kl_penalised_rewards(
        jnp.asarray(REWARDS)[chosen], old, token_log_probs(REFERENCE, chosen), mask, beta=BETA
    )
    advantages, _ = losses.generalised_advantages(rewards, jnp.zeros_like(rewards), mask, gae_lambda=1.0)
    return old, advantages, mask


def test_the_first_update_is_the_exact_policy_gradient_in_expectation():
    def objective(policy):
        whole = log_probs(policy)
        return (jnp.exp(whole) * (REWARDS - BETA * (whole - log_probs(REFERENCE)))).sum()

    def expected_loss(policy, chances, old, advantages, mask):
        per_token = losses.ppo_policy(token_log_probs(policy), old, advantages)
        return (chances * jnp.where(mask, per_token, 0).sum(1)).sum()

    with jax.enable_x64(True):
        policy = jax.tree.map(lambda leaf: jnp.asarray(leaf + rng.normal(size=leaf.shape)), REFERENCE)
        exact = jax.grad(objective)(policy)
        found = jax.grad(expected_loss)(policy, jnp.exp(log_probs(policy)), *rollout(policy))
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact)) > 0.05
        for wanted, got in zip(jax.tree.leaves(exact), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(got, -wanted, rtol=FLOAT64, atol=FLOAT64)


def train(update, steps, learning_rate):
    """From the reference, with Adam and a rate that falls to 0."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    policy = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), REFERENCE)

    def step(carry, key):
        return update(optimizer, *carry, key), None

    keys = jax.random.split(jax.random.key(0), steps)
    (policy, _), _ = jax.jit(lambda start: jax.lax.scan(step, start, keys))((policy, optimizer.init(policy)))
    return policy


def test_ppo_converges_to_the_known_optimum():
    def update(optimizer, policy, state, key):
        chosen = jax.random.categorical(key, log_probs(policy), shape=(1024,))
        old, advantages, mask = rollout(policy, chosen)

        def loss(policy):
            return losses.masked_mean(losses.ppo_policy(token_log_probs(policy, chosen), old, advantages), mask)

        for _ in range(2):  # the second pass is clipped where it went far
            updates, state = optimizer.update(jax.grad(loss)(policy), state)
            policy = optax.apply_updates(policy, updates)
        return policy, state

    assert distance(REFERENCE) > 0.2
    assert distance(train(update, 500, 0.03)) < 0.02


def test_dpo_on_pairs_of_that_bradley_terry_model_reaches_the_same_optimum():
    def update(optimizer, policy, state, key):
        pair_key, label_key = jax.random.split(key)
        first, second = jax.random.categorical(pair_key, log_probs(REFERENCE), shape=(2, 2048))
        rewards = jnp.asarray(REWARDS)
        wins = jax.random.bernoulli(label_key, jax.nn.sigmoid(rewards[first] - rewards[second]))
        chosen, rejected = jnp.where(wins, first, second), jnp.where(wins, second, first)

        def loss(policy):
            pairs = [log_probs(which)[side] for which in (policy, REFERENCE) for side in (chosen, rejected)]
            return losses.dpo(*pairs, beta=BETA).mean()

        updates, state = optimizer.update(jax.grad(loss)(policy), state)
        return optax.apply_updates(policy, updates), state

    assert distance(train(update, 1500, 0.03)) < 0.02


@pytest.mark.parametrize("response", range(len(RESPONSES)))
def test_shaped_rewards_sum_to_score_less_beta_kl(response):
    policy = jax.tree.map(lambda leaf: leaf + 0.3, REFERENCE) | {"first": REFERENCE["first"][::-1]}
    chosen = np.asarray([response])
    old, reference, mask = token_log_probs(policy, chosen), token_log_probs(REFERENCE, chosen), MASK[chosen]
    rewards, _ = losses.kl_penalised_rewards(REWARDS[chosen].astype("f4"), old, reference, mask, beta=BETA)
    wanted = REWARDS[response] - BETA * (log_probs(policy, chosen) - log_probs(REFERENCE, chosen))
    np.testing.assert_allclose(rewards.sum(1), wanted, rtol=FLOAT32, atol=FLOAT32)
