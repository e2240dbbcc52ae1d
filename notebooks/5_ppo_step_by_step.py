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
# # PPO, step by step
#
# One update of PPO by hand, with the pure functions that the recipe is made of: sample, score, pay for KL, ask the
# critic, estimate advantages, take clipped steps. Then `recipes.fit_ppo` does the same, number for number, and goes
# on.
#
# The language has 26 letters and a full stop, the model is tiny and random, and the reward is fond of vowels. So
# everything runs in seconds, and one can read what is learnt.

# %%
import json
import string
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jaxalign import data, evaluation, losses, models, recipes, sampling, training

plt.style.use(evaluation.FIGURE_STYLE)
BLUE, ORANGE, GREEN, *_ = evaluation.FIGURE_COLOURS

# %% tags=["parameters"]
EPISODES = 64  # responses in one rollout
UPDATES = 40  # of the run at the end
SEED = 0

# %% [markdown]
# ## 1. A policy, its reference, a critic
#
# Three parameter trees. The **policy** trains; the **reference** never does, and is where the policy started (here the
# policy has moved a little already, so that there is a KL to see); the **critic** guesses, before every token, what
# the finished response will score.

# %%
LETTERS = string.ascii_lowercase + "."
EOS = LETTERS.index(".")
config = models.ModelConfig(
    vocab_size=len(LETTERS), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_positions=32
)


def perturbed(tree, key, size):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + size * jax.random.normal(own, leaf.shape) for leaf, own in zip(leaves, keys, strict=True)]
    return structure.unflatten(moved)


reference = perturbed(models.init(config, jax.random.key(SEED)), jax.random.key(1), 0.1)
policy = perturbed(reference, jax.random.key(2), 0.03)
critic_config, critic_params = models.add_score_head(config, policy, jax.random.key(3))
critic = models.RewardModel(critic_config, critic_params)

# %% [markdown]
# ## 2. The rollout
#
# Every response answers the prompt "th", at most ten letters; a full stop ends it. `mask` says which entries are real
# - the EOS included, for stopping is an action like any other, and must get its share of the reward.

# %%
prompt = data.Prompt(tokens=[LETTERS.index(letter) for letter in "th"], content="th")
settings = recipes.PPOFitConfig(
    max_steps=1,
    batch_size=EPISODES,
    samples_per_prompt=EPISODES,
    sampling_batch=EPISODES,
    max_new_tokens=10,
    ppo_epochs=4,
    kl_coefficient=0.1,
    optimizer=training.OptimizerConfig(optimizer="sgd", learning_rate=0.3, clip_norm=1.0),
    mesh="data=1",
    seed=SEED,
)
rollout_key = jax.random.fold_in(
    jax.random.fold_in(jax.random.key(SEED), 0x524F_4C4C), 0
)  # the recipe's stream, rollout 0
samples = sampling.generate(
    config,
    policy,
    [prompt.tokens],
    rollout_key,
    max_new_tokens=10,
    stop_tokens=(EOS,),
    samples_per_prompt=EPISODES,
    batch_size=EPISODES,
)
mask = jnp.asarray(samples.mask)
texts = ["".join(LETTERS[token] for token in ids) for ids in samples.responses()]
print(texts[:6])
assert all((text[-1] == ".") == finished for text, finished in zip(texts, samples.finished, strict=True))
assert [len(text) for text in texts] == samples.lengths.tolist()

# %% [markdown]
# ## 3. Scores
#
# A reward is any function of prompts and completions: the share of vowels.


# %%
def fond_of_vowels(prompts, completions):
    """Share of vowels in each completion, in [0, 1]; a full stop is no letter (the recipe strips it)."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


scores = jnp.asarray(fond_of_vowels(["th"] * EPISODES, [text.rstrip(".") for text in texts]), jnp.float32)
best = int(scores.argmax())
print(f"mean score {scores.mean():.2f}; the best response is {texts[best]!r} with {scores[best]:.2f}")

# %% [markdown]
# ## 4. Log-probs, by the graph that will train
#
# Prompts and responses are laid out as rows. `source_index` is the token whose hidden state predicts each target. The
# **old** log-probs come from one pass of the *training* graph, not from the sampler: the two agree to rounding, but
# only the former make the first ratio exactly 1.

# %%
batch = data.response_batch(
    [prompt.tokens] * EPISODES,
    np.asarray(samples.tokens),
    np.asarray(samples.mask),
    prompt_width=len(prompt.tokens),
    record_ids=[0] * EPISODES,
)
batch = jax.tree.map(jnp.asarray, batch)


@jax.jit
def policy_log_probs(params):
    """log pi of every response token [B, T], nats; 0 where masked."""
    return recipes.score_targets(config, params, batch)


@jax.jit
def values_of(params):
    """What the critic expects before every token: [B, T]."""
    hidden = models.apply(critic_config, params, batch.tokens, positions=batch.positions, example=batch.example)
    return models.score(critic_config, params, models.take_tokens(hidden, batch.source_index))[..., 0]


old_log_probs, reference_log_probs = policy_log_probs(policy), policy_log_probs(reference)
old_values = values_of(critic_params)
np.testing.assert_allclose(old_log_probs, np.where(samples.mask, samples.log_probs, 0), atol=2e-5)

# %% [markdown]
# ## 5. How far from the reference?
#
# With *d = log π - log ref* on the tokens that π sampled, three estimators of KL(π ‖ ref):
#
# - **k1 = d**: unbiased, but negative on half of the tokens;
# - **k2 = d² / 2**: never negative, biased;
# - **k3 = exp(-d) - 1 + d**: never negative *and* unbiased.
#
# With all logits at hand the exact KL of every step is known too, so we can look.

# %%
estimates = {
    name: losses.kl_estimate(old_log_probs, reference_log_probs, estimator=name) for name in ("k1", "k2", "k3")
}


@jax.jit
def step_log_probs(params):
    """The whole next-token distribution before every response token: [B, T, V]."""
    hidden = models.apply(config, params, batch.tokens, positions=batch.positions, example=batch.example)
    return jax.nn.log_softmax(models.unembed(config, params, models.take_tokens(hidden, batch.source_index)))


own, theirs = step_log_probs(policy), step_log_probs(reference)
exact = jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)
assert (estimates["k3"][mask] >= 0).all()
assert (estimates["k1"][mask] < 0).any()
assert (exact[mask] > -1e-6).all()

tokens = int(mask.sum())
figure, axes = plt.subplots(figsize=(6.0, 2.8), layout="constrained")
axes.hist(
    [np.asarray(x[mask]) for x in estimates.values()], bins=30, label=list(estimates), color=[ORANGE, GREEN, BLUE]
)
axes.axvline(losses.masked_mean(exact, mask), color="black", linewidth=1, label="exact mean")
axes.set(xlabel="nats a token", ylabel="tokens", title="Three estimates of one KL")
axes.legend()
for name, estimate in estimates.items():
    error = float(jnp.sqrt(losses.masked_var(estimate, mask) / tokens))
    print(
        f"{name}: {losses.masked_mean(estimate, mask):.4f} ± {error:.4f}  (exact {losses.masked_mean(exact, mask):.4f})"
    )
spread = {name: float(losses.masked_var(estimate, mask)) for name, estimate in estimates.items()}
assert spread["k3"] < spread["k1"]

# %% [markdown]
# ## 6. A reward for every token
#
# Each token pays β for its KL; the score lands on the last one. Over a response the rewards sum to *score - β (log
# π(y) - log ref(y))*: exactly what RLHF maximises.

# %%
BETA = settings.kl_coefficient
rewards, value_mask = losses.kl_penalised_rewards(scores, old_log_probs, reference_log_probs, mask, beta=BETA)
np.testing.assert_allclose(rewards.sum(1), scores - BETA * estimates["k1"].sum(1), atol=1e-5)
assert (value_mask == mask).all()
last = np.asarray(samples.lengths) - 1
rows = np.arange(EPISODES)
np.testing.assert_allclose(rewards[rows, last], scores - BETA * estimates["k1"][rows, last], atol=1e-6)

# %% [markdown]
# ## 7. Advantages
#
# *How much better than expected was this token?* Generalised advantage estimation walks back from the end:
#
# > δ_t = r_t + γ V_{t+1} - V_t,  A_t = δ_t + γ λ A_{t+1},  V = A = 0 after the last token
#
# λ = 1 waits for the whole response (unbiased, noisy); λ = 0 trusts the critic's next guess.


# %%
def advantages_by_hand(rewards, values, lengths, discount, gae_lambda):
    found = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        advantage = value_after = 0.0
        for t in reversed(range(length)):
            error = rewards[row, t] + discount * value_after - values[row, t]
            advantage = error + discount * gae_lambda * advantage
            value_after = values[row, t]
            found[row, t] = advantage
    return found


advantages, returns = losses.generalised_advantages(rewards, old_values, mask, discount=1.0, gae_lambda=0.95)
by_hand = advantages_by_hand(np.asarray(rewards), np.asarray(old_values), samples.lengths, 1.0, 0.95)
np.testing.assert_allclose(advantages, by_hand, atol=1e-5)

to_the_end, _ = losses.generalised_advantages(rewards, old_values, mask, gae_lambda=1.0)
what_came = jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]  # the rewards from here on
np.testing.assert_allclose(to_the_end[mask], (what_came - old_values)[mask], atol=1e-5)

# %% [markdown]
# Whitening makes them mean 0 and variance 1 over the *real* tokens of the whole rollout, so that the step does not
# depend on the reward's scale. Whatever lies under the mask - here, NaN - reaches nothing.

# %%
whitened = losses.whiten(advantages, mask)
assert abs(losses.masked_mean(whitened, mask)) < 1e-6
assert abs(losses.masked_var(whitened, mask) - 1) < 1e-4
poisoned = losses.whiten(jnp.where(mask, advantages, jnp.nan), mask)
np.testing.assert_array_equal(poisoned, whitened)

figure, axes = plt.subplots(figsize=(7.2, 2.8), layout="constrained")
shown = np.argsort(scores)[[0, EPISODES // 2, -1]]
largest = float(jnp.abs(whitened[shown]).max())
axes.imshow(jnp.where(mask, whitened, jnp.nan)[shown], cmap="PuOr", vmin=-largest, vmax=largest, aspect="auto")
for place, row in enumerate(shown):
    for t, letter in enumerate(texts[row]):
        axes.text(t, place, letter, ha="center", va="center", fontsize=12)
axes.set_yticks(range(3), [f"score {scores[row]:.2f}" for row in shown])
axes.set(title="Advantages of the worst, a middling and the best response", xlabel="token")
_ = axes.grid(visible=False)

# %% [markdown]
# ## 8. The loss, and three identities at the first step
#
# Before anything has moved, π *is* the policy that sampled. So at the first minibatch
#
# - the ratio is **1**, nothing is clipped,
# - the approximate KL to the rollout is **0**,
# - the policy loss is minus the mean of whitened advantages: **0**.
#
# A loss of zero with a gradient that is not: it is the policy gradient, -A ∇ log π. (A library in which the ratio is 1
# at *every* step has recomputed the old log-probs, and its clipping never acts.)


# %%
def ppo_loss(params):
    """The recipe's loss of the whole rollout, and what one logs of it."""
    log_probs, values = policy_log_probs(params["policy"]), values_of(params["value"])
    policy_loss = losses.ppo_policy(log_probs, old_log_probs, whitened, clip=0.2)
    value_loss = losses.ppo_value(values, old_values, returns, clip=0.2)
    change = log_probs - old_log_probs
    clipped = losses.ppo_clipped(log_probs, old_log_probs, whitened, clip=0.2)
    report = {
        "policy loss": losses.masked_mean(policy_loss, mask),
        "value loss": losses.masked_mean(value_loss, mask),
        "ratio": losses.masked_mean(jnp.exp(change), mask),
        "approx. KL": losses.masked_mean(0.5 * jnp.square(change), mask),
        "clipped": losses.masked_mean(clipped.astype(jnp.float32), mask),
    }
    return report["policy loss"] + 0.1 * report["value loss"], (report, jnp.exp(change))


trained = {"policy": policy, "value": critic_params}
gradient, (first, _) = jax.jit(jax.grad(ppo_loss, has_aux=True))(trained)
print({name: f"{value:.2e}" for name, value in first.items()})
assert abs(first["ratio"] - 1) < 1e-6
assert first["approx. KL"] < 1e-10
assert first["clipped"] == 0
assert abs(first["policy loss"]) < 1e-6


def policy_gradient_loss(params):
    return -losses.masked_mean(whitened * policy_log_probs(params), mask)


plain = jax.jit(jax.grad(policy_gradient_loss))(policy)
assert optax.global_norm(plain) > 0.01
for found, expected in zip(jax.tree.leaves(gradient["policy"]), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-5)

# %% [markdown]
# ## 9. Four steps on one rollout
#
# From the second step on the ratio leaves 1, and the clip starts to hold back what has moved enough.

# %%
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3))
step = jax.jit(jax.value_and_grad(ppo_loss, has_aux=True))
state = optimizer.init(trained)
reports, ratios = [], []
for _ in range(settings.ppo_epochs):
    (_, (report, ratio)), gradient = step(trained)
    updates, state = optimizer.update(gradient, state)
    trained = optax.apply_updates(trained, updates)
    reports.append({name: float(value) for name, value in report.items()})
    ratios.append(np.asarray(ratio[mask]))

figure, panels = plt.subplots(1, 2, figsize=(8.0, 2.8), layout="constrained")
for epoch, ratio in enumerate(ratios):
    panels[0].plot(np.sort(ratio), np.linspace(0, 1, len(ratio)), label=f"step {epoch + 1}")
panels[0].axvspan(0.8, 1.2, color="0.9", zorder=0)
panels[0].set(xlabel="ratio π / π_old", ylabel="share of tokens below", title="The ratio spreads; grey: not clipped")
panels[0].legend()
for name, colour in (("policy loss", BLUE), ("approx. KL", ORANGE), ("clipped", GREEN)):
    panels[1].plot(range(1, 5), [report[name] for report in reports], marker="o", color=colour, label=name)
panels[1].set(xlabel="step", xticks=range(1, 5), title="Four steps on one rollout")
panels[1].legend()
assert reports[-1]["policy loss"] < reports[0]["policy loss"]
assert reports[-1]["approx. KL"] > reports[0]["approx. KL"]

# %% [markdown]
# ## 10. The recipe does the same
#
# One update of `recipes.fit_ppo` from the same trees, with the same key: the same scores, the same KL, the same
# losses, and the same policy at the end.


# %%
def fit(settings, folder=None):
    return recipes.fit_ppo(
        config,
        policy,
        [prompt],
        fond_of_vowels,
        settings,
        decode=lambda ids: "".join(LETTERS[token] for token in ids),
        stop_tokens=(EOS,),
        critic=critic,
        reference=reference,
        directory=folder,
        report=lambda *_: None,
    )


result = fit(settings)
np.testing.assert_allclose(result.metrics["objective/scores"], scores.mean(), rtol=1e-5)
np.testing.assert_allclose(result.metrics["objective/kl"], estimates["k1"].sum(1).mean(), atol=1e-5)
np.testing.assert_allclose(result.metrics["first_minibatch/ratio"], 1, atol=1e-6)
assert result.metrics["first_minibatch/approxkl"] < 1e-10
for name, metric in (("policy loss", "loss/policy_avg"), ("value loss", "loss/value_avg")):
    np.testing.assert_allclose(result.metrics[metric], np.mean([report[name] for report in reports]), atol=1e-5)
for found, expected in zip(jax.tree.leaves(result.params), jax.tree.leaves(trained["policy"]), strict=True):
    np.testing.assert_allclose(found, expected, atol=1e-4)

# %% [markdown]
# ## 11. And goes on
#
# Now let it run, with Adam.

# %%
longer = recipes.PPOFitConfig(
    max_steps=UPDATES,
    batch_size=EPISODES,
    samples_per_prompt=EPISODES,
    sampling_batch=EPISODES,
    max_new_tokens=10,
    kl_coefficient=0.02,
    optimizer=training.OptimizerConfig(learning_rate=3e-3, clip_norm=1.0),
    mesh="data=1",
    seed=SEED,
)
with tempfile.TemporaryDirectory() as folder:
    end = fit(longer, folder)
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
history = [json.loads(line) for line in lines if '"objective/scores"' in line]
assert len(history) == UPDATES
assert history[-1]["objective/scores"] > history[0]["objective/scores"]
assert history[-1]["objective/kl"] > history[0]["objective/kl"]

figure, axes = plt.subplots(figsize=(6.0, 2.8), layout="constrained")
axes.plot([row["objective/scores"] for row in history], color=BLUE, label="share of vowels")
axes.plot([row["objective/kl"] / 10 for row in history], color=ORANGE, linestyle="--", label="KL / 10, nats")
axes.set(xlabel="update", title="What the reward likes, and what it costs")
axes.legend()

key = jax.random.key(9)
for name, params in (("reference", reference), ("policy, at the end", end.params)):
    some = sampling.generate(
        config, params, [prompt.tokens], key, max_new_tokens=10, stop_tokens=(EOS,), samples_per_prompt=6
    )
    print(f"{name}:", ["".join(LETTERS[token] for token in ids) for ids in some.responses()])

# %% [markdown]
# It is fond of vowels now - and of brevity: one vowel and a full stop has a share of 1, and nobody asked for more. PPO
# raises the reward that was written, not the one that was meant.

# %%
if UPDATES >= 30:
    assert history[-1]["objective/scores"] > 0.8
    assert history[-1]["val/response_length"] < history[0]["val/response_length"]
