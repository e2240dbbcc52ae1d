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
# # Your own preference loss
#
# A preference loss is a function of four arrays: the log-probability of the chosen and the rejected answer, under the
# policy and under the reference. This notebook composes one from the parts in `jaxalign.losses`, states what it should
# satisfy, tests that by property, and trains with it - without touching the library.
#
# The commonest question about DPO is: *why does the log-probability of my chosen answers fall?* Because DPO sees only
# the difference to the rejected one; if both fall and the rejected falls faster, it is content. Our loss will mind.

# %%
import functools
import json
import math
import tempfile
from pathlib import Path

import chex
import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.test_util import check_grads

from jaxalign import data, evaluation, losses, models, recipes, training
from jaxalign.testing import check_loss

plt.style.use(evaluation.FIGURE_STYLE)
BLUE, ORANGE, *_ = evaluation.FIGURE_COLOURS

# %% tags=["parameters"]
STEPS = 60  # updates of each training run
MAX_EXAMPLES = 100  # of each property

# %% [markdown]
# ## 1. Compose it
#
# The implicit reward is β times the log-ratio; Bradley-Terry compares two rewards. That is DPO. Now charge the chosen
# answer for having fallen below the reference: with *f = max(0, -r_w)*,
#
# > L = -log σ(r_w - λ f - r_l)
#
# (DPO-Positive, Pal et al. 2024, arXiv 2402.13228, equation 3.)


# %%
def anchored_dpo(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta, anchor):
    """One value a pair, nats. ``anchor`` = 0 is DPO."""
    chosen = losses.implicit_reward(policy_chosen, reference_chosen, beta=beta)
    rejected = losses.implicit_reward(policy_rejected, reference_rejected, beta=beta)
    fallen = jax.nn.relu(-chosen)
    return losses.bradley_terry(chosen - anchor * fallen, rejected)


BETA, ANCHOR = 0.1, 5.0
ours = functools.partial(anchored_dpo, beta=BETA, anchor=ANCHOR)

# %% [markdown]
# A picture first. Both losses fall towards the right (chosen up) and towards the bottom (rejected down). DPO's level
# lines are diagonals: both may fall together for ever. Ours bend where the chosen answer falls below the reference.

# %%
change = jnp.linspace(-40, 40, 161)
chosen_change, rejected_change = jnp.meshgrid(change, change)
zero = jnp.zeros_like(chosen_change)
figure, panels = plt.subplots(1, 2, figsize=(7.6, 3.2), layout="constrained", sharey=True)
for panel, title, loss in (
    (panels[0], "DPO", functools.partial(losses.dpo, beta=BETA)),
    (panels[1], f"anchored, λ = {ANCHOR:g}", ours),
):
    levels = panel.contour(
        change, change, loss(chosen_change, rejected_change, zero, zero), levels=[0.05, 0.2, 0.69, 2, 4, 8, 16]
    )
    panel.clabel(levels, fontsize=7)
    panel.axvline(0, color="0.6", linewidth=0.6)
    panel.axhline(0, color="0.6", linewidth=0.6)
    panel.set(title=title, xlabel="log π/ref of the chosen answer, nats")
_ = panels[0].set_ylabel("log π/ref of the rejected answer")

# %% [markdown]
# ## 2. One call: the suite that the library's own losses pass
#
# `check_loss` wants one value a row, float32 or better out of bfloat16, jit = eager, finite values and gradients at
# ±10,000, gradients that equal float64 finite differences, and no row that reads another. `shifts` are groups of
# arguments to which one may add a constant: an answer's log-prob under *both* models.

# %%
check_loss(ours, shifts=[(0, 2), (1, 3)], at_reference=math.log(2))

# %% [markdown]
# DPO has one invariance more: add the same number to the policy's log-prob of *both* answers, and nothing changes.
# That is the very indifference we set out to remove - so here the suite must object:


# %%
def objection(loss, **claims):
    """What the suite says against a loss; empty where it passes."""
    try:
        check_loss(loss, **claims)
    except AssertionError as error:
        return str(error)
    return ""


assert not objection(functools.partial(losses.dpo, beta=BETA), shifts=[(0, 1)])
print(objection(ours, shifts=[(0, 1)]))
assert "shift" in objection(ours, shifts=[(0, 1)])

# %% [markdown]
# And what it says of the same formula written carelessly. `log(sigmoid(x))` is fine on paper; where sigmoid
# underflows, the loss is infinite and its gradient no number - on the pairs that the model has most wrong:


# %%
def careless(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    chosen = losses.implicit_reward(policy_chosen, reference_chosen, beta=BETA)
    rejected = losses.implicit_reward(policy_rejected, reference_rejected, beta=BETA)
    return -jnp.log(jax.nn.sigmoid(chosen - rejected))


print(objection(careless))
assert "extreme inputs" in objection(careless)

# %% [markdown]
# ## 3. Properties of this loss
#
# What is particular to a loss one states oneself, and lets hypothesis look for a counterexample.

# %%
property_of = hypothesis.settings(max_examples=MAX_EXAMPLES, deadline=None, database=None, derandomize=True)
rows = arrays.arrays(np.float32, (4, 5), elements=st.floats(-50, 50, width=32))
anchors = st.floats(0, 20, width=32)


@property_of
@hypothesis.given(rows)
def without_anchor_it_is_dpo(four):
    chex.assert_trees_all_close(
        anchored_dpo(*four, beta=BETA, anchor=0.0), losses.dpo(*four, beta=BETA), rtol=1e-5, atol=1e-6
    )


@property_of
@hypothesis.given(rows, anchors, anchors)
def a_stiffer_anchor_never_costs_less(four, one, other):
    soft, stiff = (anchored_dpo(*four, beta=BETA, anchor=anchor) for anchor in sorted((one, other)))
    assert (stiff >= soft - 1e-5 * jnp.abs(soft)).all()


@property_of
@hypothesis.given(rows)
def swapped_labels(four):
    """With DPO the probabilities of the two labels sum to 1. The anchor takes some away, and only where it acts."""
    chosen, rejected, reference_chosen, reference_rejected = map(jnp.asarray, four)
    sums = jnp.exp(-ours(*map(jnp.asarray, four))) + jnp.exp(
        -ours(rejected, chosen, reference_rejected, reference_chosen)
    )
    neither_fell = (chosen >= reference_chosen) & (rejected >= reference_rejected)
    assert (sums <= 1 + 1e-5).all()
    chex.assert_trees_all_close(jnp.where(neither_fell, sums, 1.0), jnp.ones(5), atol=1e-5)


@property_of
@hypothesis.given(rows, st.integers(1, 4))
def micro_batches(four, size):
    """The sum over a batch, and its gradient, are those of its pieces."""
    value_and_gradient = jax.value_and_grad(lambda policy, frozen: ours(*policy, *frozen).sum())
    policy, frozen = jnp.asarray(four[:2]), jnp.asarray(four[2:])
    whole = value_and_gradient(policy, frozen)
    values, gradients = zip(
        *(value_and_gradient(policy[:, i : i + size], frozen[:, i : i + size]) for i in range(0, 5, size)), strict=True
    )
    chex.assert_trees_all_close((sum(values), jnp.concatenate(gradients, axis=1)), whole, rtol=1e-4, atol=1e-5)
    chex.assert_tree_all_finite(whole)


without_anchor_it_is_dpo()
a_stiffer_anchor_never_costs_less()
swapped_labels()
micro_batches()

# %% [markdown]
# Padding is not the loss's affair: sequences are summed under their masks before it. But the composition is ours to
# test: whatever stands under the mask, NaN included, reaches neither value nor gradient.


# %%
def of_tokens(policy, reference, masks):
    """From token log-probs [2, B, T] (chosen, rejected) and masks to one value a pair."""
    four = [losses.sequence_log_prob(one[side], masks[side]) for one in (policy, reference) for side in (0, 1)]
    return ours(*four).sum()


token_log_probs = arrays.arrays(np.float32, (2, 2, 3, 6), elements=st.floats(-8, 0, width=32))
lengths = arrays.arrays(np.int32, (2, 3), elements=st.integers(0, 6))


@property_of
@hypothesis.given(token_log_probs, lengths)
def padding(log_probs, lengths):
    masks = np.arange(6) < lengths[..., None]
    clean = jax.value_and_grad(of_tokens)(*jnp.asarray(log_probs), masks)
    poisoned = jax.value_and_grad(of_tokens)(*jnp.where(masks, log_probs, jnp.nan), masks)
    chex.assert_tree_all_finite(poisoned)
    chex.assert_trees_all_close(poisoned, clean)
    assert (np.asarray(clean[1])[~masks] == 0).all()


padding()

# %% [markdown]
# Gradients against finite differences, in float64, away from the one kink (a chosen answer exactly at the reference):

# %%
with jax.enable_x64(True):
    generator = np.random.default_rng(0)
    policy, frozen = generator.uniform(-30, 30, (2, 8)), generator.uniform(-30, 30, (2, 8))
    assert np.abs(policy[0] - frozen[0]).min() > 0.1
    check_grads(lambda both: ours(*both, *jnp.asarray(frozen)), (jnp.asarray(policy),), order=2, atol=1e-6, rtol=1e-6)

# %% [markdown]
# ## 4. Train with it
#
# A recipe hands the trainer an `Objective`: a pure `loss(params, frozen, batch, key, extra)` that returns terms as
# *(sum, weight, coefficient)*. Sums and weights are added over micro-batches and devices, and divided once; so neither
# can change a result. Ours is eight lines: score the batch with policy and reference, sum into pairs, apply the loss.
#
# `first_loss` makes the run check that step 1 shows ln 2: policy and reference are the same model then, and if they do
# not score alike, something is wrong before anything was trained.


# %%
def make_objective(pair_loss):
    def objective(config):
        def loss(params, frozen, batch, key, extra):
            policy = recipes.score_targets(config, models.combine(params, frozen["base"]), batch)
            reference = recipes.score_targets(config, models.combine(frozen["reference"], frozen["base"]), batch)
            scores = recipes.pair_scores(batch, policy, reference)
            total = losses.masked_sum(pair_loss(*scores.four), scores.mask)
            count = jnp.sum(scores.mask).astype(total.dtype)
            return {"pairs": (total, count, 1.0)}, recipes.pair_metrics(scores, beta=BETA, with_reference=True)

        return recipes.Objective(loss=loss, needs_reference=True, first_loss=math.log(2))

    return objective


# %% [markdown]
# A tiny model, first fine-tuned on the chosen answers, as one does - so they have little room to rise. And pairs of
# the kind that makes chosen answers fall: the rejected one differs in a single token, so what pushes it down drags the
# rest along.

# %%
config = models.ModelConfig(
    vocab_size=32, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_positions=32
)
generator = np.random.default_rng(1)
demonstrations, pairs = [], []
for record in range(32):
    prompt, chosen = generator.integers(0, 32, 4), generator.integers(0, 32, 8)
    rejected = chosen.copy()
    rejected[0] = (chosen[0] + 1) % 32
    demonstrations.append(data.answers_example(prompt, [chosen], record_id=record))
    pairs.append(data.answers_example(prompt, [chosen, rejected], record_id=record, pairs=[(0, 1)]))


def settings(steps, learning_rate, accumulation=1):
    optimizer = training.OptimizerConfig(learning_rate=learning_rate, clip_norm=1.0)
    return recipes.FitConfig(
        max_steps=steps, batch_size=16, accumulation=accumulation, optimizer=optimizer, mesh="data=1"
    )


quiet = {"report": lambda *_: None}
random = models.init(config, jax.random.key(0))
sft = recipes.fit(config, random, demonstrations, recipes.likelihood_objective, settings(2 * STEPS, 1e-2), **quiet)
print(f"SFT: {sft.metrics['loss']:.2f} nats a token")


def train(objective, *, steps=STEPS, accumulation=1):
    """Every step's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        config_of_run = settings(steps, 1e-3, accumulation)
        recipes.fit(config, sft.params, pairs, objective, config_of_run, directory=folder, **quiet)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


histories = {
    "DPO": train(make_objective(functools.partial(losses.dpo, beta=BETA))),
    f"anchored, λ = {ANCHOR:g}": train(make_objective(ours)),
}
figure, panels = plt.subplots(1, 3, figsize=(9.0, 2.8), layout="constrained")
names = {"loss": "loss, nats", "log_ratios/chosen": "log π/ref, chosen", "log_ratios/rejected": "log π/ref, rejected"}
for panel, (name, title) in zip(panels, names.items(), strict=True):
    for (label, history), colour, line in zip(histories.items(), (BLUE, ORANGE), ("-", "--"), strict=True):
        panel.plot([row[name] for row in history], color=colour, linestyle=line, label=label)
    panel.axhline(0, color="0.6", linewidth=0.6)
    panel.set(title=title, xlabel="step")
panels[0].legend()

by_dpo, by_ours = (history[-1] for history in histories.values())
for row in (by_dpo, by_ours):
    print(
        {name: round(row[name], 3) for name in ("loss", "log_ratios/chosen", "log_ratios/rejected", "rewards/accuracy")}
    )
for history in histories.values():
    assert math.isclose(history[0]["loss"], math.log(2), rel_tol=1e-5)
    assert history[-1]["loss"] < history[0]["loss"]
if STEPS >= 40:
    assert by_ours["rewards/accuracy"] > 0.9
    assert by_dpo["rewards/accuracy"] > 0.9
    assert by_dpo["log_ratios/chosen"] < -1  # DPO pays for the rejected answer's fall with the chosen one's
    assert by_ours["log_ratios/chosen"] > -1  # ours does not

# %% [markdown]
# ## 5. The recipe agrees
#
# Two checks before trusting a run. With DPO's loss in it, our eight lines must do what the library's own objective
# does; and the number of micro-batches must not matter.

# %%
library = train(lambda config: recipes.preference_objective(config, recipes.PreferenceObjective(beta=BETA)), steps=4)
pieces = train(make_objective(ours), steps=4, accumulation=4)
for found, expected in ((histories["DPO"], library), (pieces, histories[f"anchored, λ = {ANCHOR:g}"])):
    np.testing.assert_allclose([row["loss"] for row in found[:4]], [row["loss"] for row in expected[:4]], rtol=1e-4)

# %% [markdown]
# To give it to others: one function in `jaxalign/losses`, one line in the table of `jaxalign/recipes/_preference.py`,
# and a test that calls `check_loss`.
