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
# # From SFT to DPO on IMDb
#
# The controlled experiment of the DPO paper (Rafailov et al. 2023, section 6.1), end to end, on what lies inside
# ordinary packages: 25,000 film reviews and a language model of 0.85 million parameters. The model first learns to
# write reviews (SFT), then samples four continuations of each opening; a sentiment classifier says which it prefers;
# DPO learns from the pairs alone. What matters at the end are two numbers: the **reward**, and the **KL** that was
# paid for it.
#
# At this size the text is half garbled. It shows the method, not fluency; with `MODEL = "smollm2"` (135 million
# parameters; set `FROZEN_LAYERS = 24`, `SFT_STEPS = 0`) it is fluent and takes longer.

# %%
import io
import math
import sys
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console

sys.path[:0] = [".", ".."]  # the repository, seen from itself or from notebooks/
from experiments import _sentiment as study_parts
from experiments._sentiment_training import demonstrations
from experiments._stages import Stages
from experiments.assets import glassllm, movie_reviews, sentiment, smollm2
from experiments.assets.prompts import prefix_prompts
from jaxalign import evaluation, recipes, sampling, training

plt.style.use(evaluation.FIGURE_STYLE)
BLUE, ORANGE, GREEN, *_ = evaluation.FIGURE_COLOURS

# %% tags=["parameters"]
MODEL = "glassllm"
FROZEN_LAYERS = 0
RATED_REVIEWS = 4000  # reviews that the reward, and as many others that the judge, are fitted on
SFT_STEPS = 300
PROMPTS = 640  # openings whose continuations are compared
HELD_OUT = 256  # openings that policies are measured on
NEW_TOKENS = 32
DPO_STEPS = 40
MEASURE_EVERY = 10
BETAS = [0.1, 1.0]

# %%
study = study_parts.Study(
    model=MODEL,
    prompts=PROMPTS,
    held_out=HELD_OUT,
    max_new_tokens=NEW_TOKENS,
    sampling_batch=256,
    sft_steps=SFT_STEPS,
    frozen_layers=FROZEN_LAYERS,
    steps=DPO_STEPS,
    prompts_per_step=16,
    measure_every=MEASURE_EVERY,
)
config, base, tokenizer = {"glassllm": glassllm, "smollm2": smollm2}[MODEL].load()
reviews = movie_reviews.load_movie_reviews(seed=0)
print(reviews.sft.texts[0][:200])

# %% [markdown]
# ## 1. A reward, and a judge that is not the reward
#
# The reward is the log-odds of "positive" under a linear model of words; preferences come from it. The judge is of
# another kind (characters, naive Bayes) and fitted on *other* reviews: a policy that learns the quirks of the one
# finds no help in them with the other.

# %%
with tempfile.TemporaryDirectory() as folder:
    stages = Stages(Path(folder), console=Console(file=io.StringIO()))
    reward = sentiment.fit_or_load(
        sentiment.TfidfReward, reviews.reward.take(RATED_REVIEWS), reviews.reward_sentences.take(RATED_REVIEWS), stages
    )
    judge = sentiment.fit_or_load(
        sentiment.CharacterJudge, reviews.judge.take(RATED_REVIEWS), reviews.judge_sentences.take(RATED_REVIEWS), stages
    )
raters = study_parts.Raters(reward=reward, judge=judge.probability)

for rater in (reward, judge):
    accuracy = sentiment.accuracies(rater, reviews.prompts.take(500), reviews.held_out_sentences.take(300))
    print(rater.name, {name: f"{value:.2f}" for name, value in accuracy.items()})
    assert accuracy["full reviews"] > 0.6
good, bad = reward(["The film was"] * 2, [" wonderful and moving.", " awful and boring."])
assert good > bad

# %% [markdown]
# ## 2. SFT: learn to write reviews
#
# DPO needs a model in whose samples the preferred kind occurs at all. Windows of reviews, cross-entropy a token, AdamW
# with a cosine. `likelihood_objective` is the whole method.

# %%
windows = demonstrations(tokenizer, reviews.sft.texts, study)
print(len(windows), "windows, such as", repr(tokenizer.decode(windows[0].tokens.tolist())[:80]))
sft_losses = []
start = base
if SFT_STEPS:
    settings = recipes.FitConfig(
        max_steps=SFT_STEPS,
        batch_size=32,
        optimizer=training.OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=10, clip_norm=1.0),
    )
    fitted = recipes.fit(
        config,
        base,
        windows,
        recipes.likelihood_objective,
        settings,
        report=lambda done, total, note: sft_losses.append(float(note.removeprefix("loss "))),
    )
    start = fitted.params
    print(f"loss {sft_losses[0]:.2f} -> {sft_losses[-1]:.2f} nats a token")
    assert sft_losses[-1] < sft_losses[0]

    figure, axes = plt.subplots(figsize=(5.2, 2.6), layout="constrained")
    axes.plot(sft_losses, color=BLUE)
    axes.set(xlabel="step", ylabel="nats a token", title="SFT on reviews")

# %% [markdown]
# ## 3. Preferences, from the model's own samples
#
# Prompts are the first 2 to 8 tokens of reviews that nobody has seen. Each is continued four times; every two
# continuations of unequal reward are a pair. An example holds the prompt once and each sample once, however many pairs
# it is in.


# %%
def quiet(done, total, note=""):
    """A progress report that nobody reads."""


openings = prefix_prompts(tokenizer, reviews.prompts.texts, 0)
training_prompts, held_out = openings[:PROMPTS], openings[PROMPTS : PROMPTS + HELD_OUT]
assert len(held_out) == HELD_OUT

samples, texts = study_parts.sample(config, start, tokenizer, training_prompts, study, each=4, seed=0, report=quiet)
scores = sampling.score_texts(reward, [prompt.opening for prompt in training_prompts for _ in range(4)], texts)
examples = study_parts.preference_examples(training_prompts, samples.responses(), scores)

best, worst = np.argsort(scores[:4])[[-1, 0]]
print("opening: ", training_prompts[0].opening)
print(f"chosen   ({scores[best]:+.2f}):", texts[best])
print(f"rejected ({scores[worst]:+.2f}):", texts[worst])
assert sum(len(example.pairs) for example in examples) <= 6 * PROMPTS
for example in examples[:20]:
    own = scores[4 * example.record_id : 4 * example.record_id + 4]
    assert all(own[chosen] > own[rejected] for chosen, rejected in example.pairs)

# %% [markdown]
# ## 4. Where we start
#
# A policy is measured on held-out openings: the mean reward of its samples, and the **sequence-level** KL to the start
# model, the mean of log π(y) - log ref(y) over whole samples y ~ π, in nats. (A KL a token would hide that long
# answers drift further.) The start model's own KL is 0.


# %%
def measure(params, step):
    reference = None if params is start else start
    return study_parts.measure(config, params, reference, tokenizer, held_out, raters, study, step=step, report=quiet)


at_start = measure(start, 0)
assert np.abs(at_start.kl).max() == 0
print(f"start: reward {np.mean(at_start.reward):+.2f}, judge P(positive) {np.mean(at_start.judge):.2f}")

# %% [markdown]
# ## 5. DPO
#
# One objective, one `fit` a β. The reference is the model that training starts from, so the first loss must be ln 2 -
# the run checks that itself, and stops if policy and reference do not score alike. β says how much reward a nat of KL
# must bring.

# %%
curves, final, histories = {}, {}, {}
for beta in BETAS:
    points, first = [at_start], []

    def evaluate(step, params, points=points):
        if step:
            points.append(measure(params, step))
        return {}

    result = recipes.fit(
        config,
        start,
        examples,
        lambda config, beta=beta: recipes.preference_objective(config, recipes.PreferenceObjective(beta=beta)),
        recipes.FitConfig(
            max_steps=DPO_STEPS,
            batch_size=16,
            frozen_layers=FROZEN_LAYERS,
            optimizer=training.OptimizerConfig(learning_rate=3e-4, warmup_steps=10, clip_norm=10.0),
            eval_every=MEASURE_EVERY,
        ),
        evaluate=evaluate,
        report=lambda done, total, note, first=first: first.append(float(note.removeprefix("loss "))),
    )
    curves[beta], final[beta], histories[beta] = points, result.params, first
    assert math.isclose(first[0], math.log(2), abs_tol=1e-3)
    print(
        f"β = {beta:g}: reward {np.mean(points[-1].reward):+.2f} at a KL of {np.mean(points[-1].kl):.2f} nats, "
        f"judge {np.mean(points[-1].judge):.2f}, training accuracy {result.metrics['rewards/accuracy']:.2f}"
    )

moved = jax.tree.map(lambda new, old: bool((np.asarray(new) != np.asarray(old)).any()), final[BETAS[0]], start)
assert any(jax.tree.leaves(moved))

# %% [markdown]
# ## 6. What it cost
#
# The curve to look at is reward *against KL*: a method is better if it gets more reward for the same distance. A small
# β goes further.

# %%
frontier = [point.point("DPO", f"β = {beta:g}", seed=0) for beta, points in curves.items() for point in points]
evaluation.plot_frontier(frontier, reward_label="Reward (log-odds of positive)", title="DPO on held-out openings")

# %%
for points in curves.values():
    kl, won = np.mean(points[-1].kl), np.mean(points[-1].reward)
    assert np.isfinite([kl, won]).all()
    if SFT_STEPS >= 200 and DPO_STEPS >= 30:  # what the prose claims needs a real scale
        assert kl > 0.1
        assert won > np.mean(at_start.reward) + 0.2
        assert np.mean(points[-1].judge) > np.mean(at_start.judge)
if SFT_STEPS >= 200 and DPO_STEPS >= 30:
    assert np.mean(curves[BETAS[0]][-1].kl) > np.mean(curves[BETAS[-1]][-1].kl)

# %% [markdown]
# And to read it, always: a number that went up may have gone up for a bad reason.

# %%
changed = curves[BETAS[0]][-1]
for index in range(min(3, HELD_OUT)):
    print("opening:", held_out[index].opening)
    print(f"  start ({at_start.reward[index]:+.2f}):", at_start.texts[index])
    print(f"  DPO   ({changed.reward[index]:+.2f}):", changed.texts[index])

# %% [markdown]
# `python -m experiments.imdb_sentiment --preset mini` is this experiment in full: every baseline, PPO, several
# seeds, intervals and a report.
