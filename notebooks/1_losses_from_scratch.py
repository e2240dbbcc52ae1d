# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RLHF without RL, from scratch
#
# Alignment from preferences is usually told in three chapters: fit a reward to comparisons (Bradley-Terry), raise that
# reward while staying near the model one started from (PPO), and then the surprise: the two collapse into one
# supervised loss (DPO). Here every chapter is a few lines of JAX on a model so small that nothing needs sampling, and
# each claim is an `assert`. What stands in `jaxalign.losses` is checked against what we write by hand.

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxalign import evaluation, losses

plt.style.use(evaluation.FIGURE_STYLE)
BLUE, ORANGE, GREEN, PINK, *_ = evaluation.FIGURE_COLOURS

# %% [markdown]
# ## A language model small enough to see
#
# One prompt, six possible answers. A policy is six logits, so log π(y) is a log-softmax and every expectation over
# answers is a sum. Someone has a reward r(y) in mind; the reference model has habits of its own, and likes best an
# answer (`shrugs`) that is not the best one.

# %%
ANSWERS = ["insults", "ignores", "shrugs", "replies", "helps", "delights"]
reward = jnp.array([-2.0, -1.0, 0.0, 0.5, 1.5, 2.0])
reference_logits = jnp.array([0.3, 1.0, 1.5, 1.0, 0.0, -1.5])


def log_probs(logits):
    """log pi(y) of every answer, nats: [6]."""
    return jax.nn.log_softmax(logits)


def kl(logits, other):
    """KL(pi || other) in nats: exact, for every answer is there."""
    return jnp.sum(jnp.exp(log_probs(logits)) * (log_probs(logits) - log_probs(other)))


def minimise(loss, start, *, steps, rate, rule=optax.adam):
    """Gradient steps on a function of one array; returns every iterate: [steps, ...]."""
    optimizer = rule(rate)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    return jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), None, length=steps)[1])(start)


# %% [markdown]
# ## 1. Bradley-Terry: a reward from comparisons
#
# People cannot say "this answer is worth 1.5", but they can say which of two they prefer. Bradley and Terry (1952)
# model that by *p(y_w beats y_l) = σ(r(y_w) - r(y_l))*, and a reward model minimises the negative log-likelihood.


# %%
def bradley_terry(chosen, rejected):
    return -jax.nn.log_sigmoid(chosen - rejected)


margins = jnp.linspace(-6, 6, 241)
np.testing.assert_allclose(bradley_terry(margins, 0.0), losses.bradley_terry(margins, 0 * margins), rtol=1e-6)

slope = jax.vmap(jax.grad(bradley_terry), in_axes=(0, None))(margins, 0.0)
np.testing.assert_allclose(slope, -jax.nn.sigmoid(-margins), atol=1e-6)  # the pull fades as the pair gets its order
assert math.isclose(bradley_terry(0.0, 0.0), math.log(2), rel_tol=1e-6)  # no opinion: a coin

figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
axes.plot(margins, bradley_terry(margins, 0.0), color=BLUE, label="loss: -log σ(margin)")
axes.plot(margins, slope, color=ORANGE, linestyle="--", label="slope: -σ(-margin)")
axes.axvline(0, color="0.6", linewidth=0.6)
axes.set(xlabel="margin r(y_w) - r(y_l)", ylabel="nats", title="Bradley-Terry: wrong pairs pull, right ones let go")
_ = axes.legend()
# %% [markdown]
# With every ordered pair, each as often as people would choose it, the minimum of the loss is the true reward - **up
# to a constant**. Comparisons never say where zero is; hold on to this, it is what will make DPO possible.

# %%
better, worse = (index.ravel() for index in np.indices((6, 6)))
better, worse = better[better != worse], worse[better != worse]
how_often = jax.nn.sigmoid(reward[better] - reward[worse]) / 15  # of the 15 pairs each is shown alike; sums to 1
assert math.isclose(how_often.sum(), 1, rel_tol=1e-5)


def reward_loss(scores):
    return jnp.sum(how_often * losses.bradley_terry(scores[better], scores[worse]))


fitted = minimise(reward_loss, jnp.zeros(6), steps=800, rate=0.05)[-1]
np.testing.assert_allclose(fitted - fitted.mean(), reward - reward.mean(), atol=0.01)
np.testing.assert_allclose(reward_loss(fitted + 100.0), reward_loss(fitted), rtol=1e-5)
print("fitted:", np.round(fitted - fitted.mean() + reward.mean(), 2), " true:", reward)

# %% [markdown]
# ## 2. The KL-penalised reward, and its best policy
#
# Raising the reward alone would put everything on one answer. RLHF asks for
#
# > maximise over π:  E_{y ~ π}[r(y)] - β KL(π ‖ ref)
#
# and this has a solution in closed form: *π\*(y) ∝ ref(y) exp(r(y) / β)*. The reference, tilted by the reward; β says
# how stiff it is. Gradient ascent on the objective finds exactly that policy.

# %%
BETA = 0.5


def objective(logits):
    return jnp.sum(jnp.exp(log_probs(logits)) * reward) - BETA * kl(logits, reference_logits)


by_ascent = minimise(lambda logits: -objective(logits), reference_logits, steps=800, rate=0.05)[-1]
in_closed_form = reference_logits + reward / BETA
np.testing.assert_allclose(jnp.exp(log_probs(by_ascent)), jnp.exp(log_probs(in_closed_form)), atol=1e-3)

places = np.arange(6)
figure, axes = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
axes.bar(places - 0.3, jnp.exp(log_probs(reference_logits)), 0.2, color="0.7", label="reference")
for shift, beta, colour in ((-0.1, 2.0, BLUE), (0.1, 0.5, ORANGE), (0.3, 0.1, GREEN)):
    tilted = jnp.exp(log_probs(reference_logits + reward / beta))
    axes.bar(places + shift, tilted, 0.2, color=colour, label=f"β = {beta:g}")
axes.set_xticks(places, [f"{answer}\nr = {value:g}" for answer, value in zip(ANSWERS, reward, strict=True)])
axes.set(ylabel="probability", title="The best policy is the reference, tilted by exp(r / β)")
_ = axes.legend()
# %% [markdown]
# PPO does not see whole answers but tokens. The penalty is paid token by token, -β (log π - log ref), and the score
# arrives with the last one. The sum over an answer is what the objective weighs:

# %%
score = jnp.array([1.5])
policy_tokens = jnp.array([[-0.7, -2.0, -0.1, 0.0]])  # log-probs of three tokens, the third its EOS, and padding
reference_tokens = jnp.array([[-1.0, -1.6, -0.4, 0.0]])
mask = jnp.array([[True, True, True, False]])
rewards, _ = losses.kl_penalised_rewards(score, policy_tokens, reference_tokens, mask, beta=BETA)
by_hand = -BETA * (policy_tokens - reference_tokens) + jnp.array([[0.0, 0.0, 1.5, 0.0]])
np.testing.assert_allclose(rewards, by_hand, atol=1e-6)
np.testing.assert_allclose(rewards.sum(), score[0] - BETA * (policy_tokens - reference_tokens).sum(), rtol=1e-6)

# %% [markdown]
# ## 3. PPO's clipped objective
#
# Sampling is dear, so PPO takes several steps on answers that an older policy sampled. With the ratio *ρ = π / π_old*
# and the advantage *A* (how much better than expected an action was) it maximises
#
# > min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)
#
# The gradient ends where a step has already moved a probability far enough in the good direction - and only there: a
# ratio that went the *wrong* way is still pulled back.


# %%
def clipped_objective(ratio, advantage, clip=0.2):
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


ratio = jnp.linspace(0.4, 1.8, 281)
figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained", sharex=True)
for panel, advantage, colour in zip(panels, (1.0, -1.0), (BLUE, ORANGE), strict=True):
    given = jnp.full(ratio.shape, advantage)
    np.testing.assert_allclose(
        clipped_objective(ratio, advantage), -losses.ppo_policy(jnp.log(ratio), 0 * ratio, given), atol=1e-5
    )
    panel.plot(ratio, ratio * advantage, color="0.7", linestyle=":", label="ρ A")
    panel.plot(ratio, clipped_objective(ratio, advantage), color=colour, label="clipped")
    panel.axvline(1, color="0.6", linewidth=0.6)
    panel.set(xlabel="ratio ρ", title=f"A = {advantage:+g}")
    panel.legend()

slope_of = jax.grad(clipped_objective)
assert slope_of(1.0, 1.0) == 1.0  # at ρ = 1 it is the plain policy gradient, A grad log π
assert slope_of(1.5, 1.0) == 0.0  # a good action, already likelier by half: enough
assert slope_of(0.5, 1.0) == 1.0  # a good action that became unlikely: pulled back
assert slope_of(0.5, -1.0) == 0.0  # a bad action, already unlikely: enough
assert slope_of(1.5, -1.0) == -1.0  # a bad action that became likely: pushed down

# %% [markdown]
# ## 4. DPO: the reward was in the policy all along
#
# Turn π\* ∝ ref exp(r / β) around:
#
# > r(y) = β log (π\*(y) / ref(y)) + β log Z
#
# Every reward *is* a log-ratio of its best policy, up to the constant β log Z - and Bradley-Terry does not see
# constants. Put the one into the other, and the reward model is gone:
#
# > L = -log σ(β [log π/ref (y_w) - log π/ref (y_l)])

# %%
log_ratio = log_probs(in_closed_form) - log_probs(reference_logits)
constant = reward - BETA * log_ratio
np.testing.assert_allclose(constant, jnp.full(6, constant[0]), atol=1e-5)  # β log Z: one number for all answers
log_z = jax.nn.logsumexp(log_probs(reference_logits) + reward / BETA)
np.testing.assert_allclose(constant[0], BETA * log_z, rtol=1e-5)


def dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta):
    return bradley_terry(beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected))


def four(logits):
    """What a preference loss takes, for all thirty ordered pairs."""
    policy, frozen = log_probs(logits), log_probs(reference_logits)
    return policy[better], policy[worse], frozen[better], frozen[worse]


np.testing.assert_allclose(dpo(*four(in_closed_form), BETA), losses.dpo(*four(in_closed_form), beta=BETA), rtol=1e-5)
np.testing.assert_allclose(  # the reward's loss and the best policy's are the same number, pair by pair
    losses.dpo(*four(in_closed_form), beta=BETA), losses.bradley_terry(reward[better], reward[worse]), atol=1e-4
)
np.testing.assert_allclose(losses.dpo(*four(reference_logits), beta=BETA), math.log(2), rtol=1e-6)  # where one starts

# %% [markdown]
# So let us train on comparisons alone - no reward model, no sampling, no RL - and see where it ends: at the policy
# that chapter 2 found by maximising the reward.


# %%
def dpo_loss(logits):
    return jnp.sum(how_often * losses.dpo(*four(logits), beta=BETA))


dpo_path = minimise(dpo_loss, reference_logits, steps=800, rate=0.05)
without_rl = dpo_path[-1]
np.testing.assert_allclose(jnp.exp(log_probs(without_rl)), jnp.exp(log_probs(by_ascent)), atol=0.01)

figure, axes = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
axes.bar(places - 0.25, jnp.exp(log_probs(reference_logits)), 0.25, color="0.7", label="reference")
axes.bar(places, jnp.exp(log_probs(by_ascent)), 0.25, color=BLUE, label="RL: E[r] - β KL, maximised")
axes.bar(places + 0.25, jnp.exp(log_probs(without_rl)), 0.25, color=ORANGE, label="DPO: comparisons alone")
axes.set_xticks(places, ANSWERS)
axes.set(ylabel="probability", title="Two roads to one policy")
_ = axes.legend()

# %% [markdown]
# ## 5. Its gradient
#
# With the implicit reward *r = β log π/ref*, the gradient of one pair is
#
# > -β σ(r_l - r_w) (∇ log π(y_w) - ∇ log π(y_l))
#
# Raise the chosen answer, lower the rejected one, **weighted by how wrong the model is about them**. Against autodiff,
# for every pair:


# %%
def dpo_gradient(logits, winner, loser, beta):
    implicit = beta * (log_probs(logits) - log_probs(reference_logits))
    weight = jax.nn.sigmoid(implicit[loser] - implicit[winner])
    grad_log_prob = jax.jacobian(log_probs)(logits)  # [answer, logit]
    return -beta * weight * (grad_log_prob[winner] - grad_log_prob[loser])


def of_pair(logits, winner, loser):
    policy, frozen = log_probs(logits), log_probs(reference_logits)
    return losses.dpo(policy[winner], policy[loser], frozen[winner], frozen[loser], beta=BETA)


somewhere = reference_logits + jnp.array([1.0, -1.0, 0.5, 0.0, 2.0, -0.5])
by_formula = jax.vmap(dpo_gradient, in_axes=(None, 0, 0, None))(somewhere, better, worse, BETA)
by_autodiff = jax.vmap(jax.grad(of_pair), in_axes=(None, 0, 0))(somewhere, better, worse)
np.testing.assert_allclose(by_formula, by_autodiff, atol=1e-6)

# %% [markdown]
# What it looks like: the same comparison (`delights` over `insults`), seen by a model that has it wrong, one that has
# no opinion, and one that has it right. Same direction, very different pull.

# %%
delights, insults = ANSWERS.index("delights"), ANSWERS.index("insults")
push = jnp.zeros(6).at[delights].set(1.0).at[insults].set(-1.0)
models = {"has it wrong": -3.0, "no opinion": 0.0, "has it right": 3.0}

figure, panels = plt.subplots(1, 3, figsize=(8.4, 2.8), layout="constrained", sharey=True)
pulls = []
for panel, (name, size) in zip(panels, models.items(), strict=True):
    pull = -jax.grad(of_pair)(reference_logits + size * push, delights, insults)
    pulls.append(float(jnp.linalg.norm(pull)))
    panel.bar(places, pull, color=[BLUE if value >= 0 else ORANGE for value in pull])
    panel.set_xticks(places, ANSWERS, rotation=60, ha="right")
    panel.axhline(0, color="0.6", linewidth=0.6)
    panel.set_title(f"{name}\nweight σ(r_l - r_w) = {jax.nn.sigmoid(-2 * BETA * size):.2f}")
panels[0].set_ylabel("pull on the logit")
assert pulls[0] > pulls[1] > pulls[2]

# %% [markdown]
# ## 6. What if the weight were 1?
#
# The sigmoid weighs a pair by how wrong the implicit reward still has it. Take the weight away and the gradient is
#
# > -β (∇ log π(y_w) - ∇ log π(y_l))
#
# that of L = -β h, a straight line. Nothing ever lets go of a pair that is already ordered. Both start downhill alike;
# then DPO arrives, and the other goes on for ever, past the best policy, until one answer has everything and nothing is
# left of the reference. (The DPO paper, section 4, found that such a model degenerates.)


# %%
def unweighted_loss(logits):
    return jnp.sum(how_often * losses.unweighted_dpo(*four(logits), beta=BETA))


at_start = jax.grad(unweighted_loss)(reference_logits)  # at π = ref every weight is 1/2: the same direction
np.testing.assert_allclose(jax.grad(dpo_loss)(reference_logits), 0.5 * at_start, atol=1e-6)

plain = {"steps": 200, "rate": 5.0, "rule": optax.sgd}  # plain gradient descent: Adam would hide the gradient's size
dpo_path = minimise(dpo_loss, reference_logits, **plain)
unweighted_path = minimise(unweighted_loss, reference_logits, **plain)


def entropy(logits):
    return -jnp.sum(jnp.exp(log_probs(logits)) * log_probs(logits))


def along(function, path):
    return np.asarray(jax.vmap(function)(path))


figure, panels = plt.subplots(1, 3, figsize=(9.0, 2.8), layout="constrained")
for path, label, colour, line in ((dpo_path, "DPO", BLUE, "-"), (unweighted_path, "weight 1", ORANGE, "--")):
    panels[0].plot(along(lambda x: kl(x, reference_logits), path), color=colour, linestyle=line, label=label)
    panels[1].plot(along(entropy, path), color=colour, linestyle=line)
    panels[2].plot(along(objective, path), color=colour, linestyle=line)
panels[0].axhline(kl(in_closed_form, reference_logits), color="0.6", linewidth=0.8, label="π*")
panels[1].axhline(entropy(in_closed_form), color="0.6", linewidth=0.8)
panels[2].axhline(objective(in_closed_form), color="0.6", linewidth=0.8)
for panel, title in zip(panels, ("KL(π ‖ ref), nats", "entropy, nats", "E[r] - β KL"), strict=True):
    panel.set(title=title, xlabel="step")
panels[0].legend()

assert objective(dpo_path[-1]) > objective(in_closed_form) - 1e-3  # DPO arrives and stays
assert entropy(unweighted_path[-1]) < 0.01 < 0.3 < entropy(dpo_path[-1])  # the other ends in one answer
assert unweighted_loss(unweighted_path[-1]) < unweighted_loss(unweighted_path[-100]) - 1  # and still goes down
assert objective(unweighted_path[-1]) < objective(in_closed_form) - 0.05

# %% [markdown]
# ## Where to go
#
# - `2_your_own_preference_loss.py`: compose a loss of your own and hold it to these properties.
# - `3_from_sft_to_dpo_on_imdb.py`: the same on a real (small) language model and real film reviews.
# - `5_ppo_step_by_step.py`: the road that DPO shortens.
