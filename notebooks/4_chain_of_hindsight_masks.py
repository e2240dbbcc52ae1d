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
# # Chain of Hindsight: the masks, seen
#
# Chain of Hindsight (Liu, Sferrazza and Abbeel 2023) learns from feedback *in words*: the model reads "A bad answer is
# ..., a good answer is ..." and learns the answers, given the words. One line of loss, and two masks that decide
# everything: **which tokens are learnt**, and **which tokens are seen**. This notebook draws both, and checks that
# packing and micro-batches change neither.
#
# The model and tokenizer are a packaged one of 0.85 million parameters: real, and quick.

# %%
import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

sys.path[:0] = [".", ".."]  # the repository, seen from itself or from notebooks/
from experiments.assets import glassllm
from jaxalign import data, evaluation, losses, recipes

plt.style.use(evaluation.FIGURE_STYLE)
BLUE, ORANGE, GREEN, *_ = evaluation.FIGURE_COLOURS
config, params, tokenizer = glassllm.load()

# %% [markdown]
# ## 1. Which tokens are learnt
#
# A record is a prompt and two answers, one preferred. A chain puts them behind one another, each after the words that
# say what it is. The loss is on the **answers and their EOS** - never on the prompt, never on the feedback: the model
# should act on the words, not learn to say them.

# %%
record = {
    "prompt": "What was the film like?",
    "chosen": "A quiet story, told with care.",
    "rejected": "It was long.",
}


def chains(form, records=(record,)):
    return data.build_chains(list(records), tokenizer, form)[0]


def learnt(example):
    """Which tokens are targets: bool [n]. Each is predicted from the token before it."""
    found = np.zeros(len(example.tokens), bool)
    found[example.source_index + 1] = True
    assert (example.tokens[example.source_index + 1] == example.targets).all()
    return found


def draw_tokens(examples, title, width=96):
    """Tokens as boxes: blue is learnt, orange is learnt and below the best, grey is only read."""
    lines = []
    for example in examples:
        x, line, worse = 0, [], dict(zip(example.source_index + 1, example.target_extras["negative"], strict=True))
        for place, (token, is_learnt) in enumerate(zip(example.tokens, learnt(example), strict=True)):
            text = tokenizer.convert_ids_to_tokens(int(token)).replace("▁", " ").replace("<0x0A>", "\\n")
            if x + len(text) > width:
                lines.append(line)
                x, line = 0, []
            line.append((x, text, "0.88" if not is_learnt else "#F6C49B" if worse[place] else "#9CC9E8"))
            x += len(text)
        lines += [line, []]
    _, axes = plt.subplots(figsize=(8.6, 0.5 + 0.27 * len(lines)), layout="constrained")
    for number, line in enumerate(lines):
        for x, text, colour in line:
            axes.add_patch(plt.Rectangle((x, -number - 0.45), len(text), 0.9, facecolor=colour, edgecolor="white"))
            axes.text(x + len(text) / 2, -number, text, family="monospace", fontsize=7.5, ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(-len(lines) + 0.5, 0.8), title=title)
    axes.axis("off")


example = chains(data.ChainFormat(structures=("np",), templates="talk")).draw(0, 0)
draw_tokens([example], "Blue: the better answer, orange: the worse, grey: read but not learnt")

# %% [markdown]
# The claim, checked: what is learnt decodes to the two answers with their EOS, in this order, and to nothing else.

# %%
mask = learnt(example)
words = tokenizer.decode(example.targets.tolist())
print(repr(words))
assert words.replace("<eos>", "").split() == (record["rejected"] + " " + record["chosen"]).split()
assert (example.targets == tokenizer.eos_token_id).sum() == 2  # both EOS are learnt
assert "answer" not in words
assert "answer" in tokenizer.decode(example.tokens[~mask].tolist())

# %% [markdown]
# An answer that was cut off by a length limit has no EOS: a model must not learn to stop in the middle of a sentence.

# %%
cut = record | {"rejected": "It was long and", "rejected_finished": False}
unfinished = chains(data.ChainFormat(structures=("np",), templates="talk"), [cut]).draw(0, 0)
print(repr(tokenizer.decode(unfinished.targets.tolist())))
assert (unfinished.targets == tokenizer.eos_token_id).sum() == 1  # the other's

# %% [markdown]
# ## 2. What a record can become
#
# The structure says which answers stand there and in which order: `p` the good one alone, `n` the bad one alone, `pn`
# and `np` both, `aux` both with paraphrased words, and `chain` any number of rated answers, graded. At sampling time
# the model is given the good words, and answers.

# %%
rated = {
    "prompt": "What was the film like?",
    "responses": ["It was long.", "It was fine.", "A quiet story, told with care."],
    "ratings": [1, 2, 5],
}
forms = [data.ChainFormat(structures=(name,), templates="released") for name in ("p", "n", "pn", "np", "aux")]
rising = data.ChainFormat(structures=("chain",), templates="released", chain_order="rising")
drawn = [chains(form).draw(0, 0) for form in forms] + [chains(rising, [rated]).draw(0, 0)]
draw_tokens(drawn, "p, n, pn, np, aux, chain")

single, chain = drawn[0], drawn[-1]
assert (single.targets == tokenizer.eos_token_id).sum() == 1
assert (chain.targets == tokenizer.eos_token_id).sum() == 3
assert chain.target_extras["negative"].tolist() == sorted(chain.target_extras["negative"], reverse=True)  # worst first

# %% [markdown]
# Templates are data: the paper's structure (`paper`), its released code's markers (`released`), three short ones
# (`talk`), or a file of your own. Which is drawn follows from (seed, record, use) - so a run that resumes reads the
# same words.

# %%
for name in data.BUILT_IN_TEMPLATES:
    pairs = data.load_templates(name).pairs
    print(f"{name}: {len(pairs)} pairs, such as {pairs[0].text!r}")

several = chains(data.ChainFormat(templates="paper"))
texts = {tokenizer.decode(several.draw(0, used).tokens.tolist()) for used in range(20)}
again = {tokenizer.decode(several.draw(0, used).tokens.tolist()) for used in range(20)}
assert len(texts) > 3
assert texts == again
print("\n".join(sorted(texts)[:3]))

# %% [markdown]
# ## 3. The loss, token by token
#
# The loss is a sum of -log p over learnt tokens, here of a model that has never seen the feedback words.


# %%
def collate(rows):
    """Rows of examples as one batch, in the smallest shape that holds them."""
    specs = data.extra_specs([example for row in rows for example in row])
    shape = data.BatchShape(
        tokens=max(sum(len(example.tokens) for example in row) for row in rows),
        targets=max(sum(len(example.targets) for example in row) for row in rows),
        sequences=max(len(row) for row in rows),
        examples=max(len(row) for row in rows),
        branched=False,
    )
    return jax.tree.map(jnp.asarray, data.collate(rows, shape, extras=specs))


batch = collate([[example]])
token_log_probs = recipes.score_targets(config, params, batch)
values = losses.chain_of_hindsight(token_log_probs, batch.target_mask)
assert values.shape == (1, int(mask.sum()))
np.testing.assert_allclose(values, -token_log_probs, rtol=1e-6)

figure, axes = plt.subplots(figsize=(8.6, 2.6), layout="constrained")
negative = np.asarray(example.target_extras["negative"])
axes.bar(np.arange(len(negative)), values[0], color=[ORANGE if worse else BLUE for worse in negative])
names = [tokenizer.convert_ids_to_tokens(int(token)).replace("▁", "") for token in example.targets]
axes.set_xticks(np.arange(len(names)), names, rotation=60, ha="right")
axes.set(ylabel="-log p, nats", title="The loss, token by token")

hidden = jnp.where(jnp.arange(values.shape[1]) < 3, jnp.nan, token_log_probs)  # what the mask hides reaches nothing
kept = losses.chain_of_hindsight(hidden, batch.target_mask & (jnp.arange(values.shape[1]) >= 3))
np.testing.assert_allclose(kept.sum(), values[:, 3:].sum(), rtol=1e-6)

# %% [markdown]
# ## 4. Which tokens are seen: the forgetful causal mask
#
# A chain invites copying: the second answer may be near the first. So while training some of the past is hidden, anew
# for every example and step: a ratio r ~ U[min, max], and each (query, key) pair below the diagonal is dropped with
# probability r. Always visible: the token itself, and the first one - so no row is ever empty. (The paper's r goes to
# 0.05; here it goes higher, to be seen.)

# %%
key, length = jax.random.key(0), len(example.tokens)
panels_of = {"causal": (0.0, 0.0), "r = 0.05": (0.05, 0.05), "r = 0.3": (0.3, 0.3)}
figure, panels = plt.subplots(1, 3, figsize=(8.8, 3.1), layout="constrained")
for panel, (name, (low, high)) in zip(panels, panels_of.items(), strict=True):
    visible = losses.forgetful_causal_mask(key, 1, length, min_ratio=low, max_ratio=high)[0]
    below = np.tril(np.ones((length, length), bool), -1)
    below[:, 0] = False
    dropped = 1 - float(visible[below].mean())
    panel.imshow(visible, cmap="Blues", vmin=0, vmax=1.4)
    panel.set(title=f"{name}: {dropped:.0%} hidden", xlabel="key (what is seen)")
    panel.grid(visible=False)
    assert not np.triu(visible, 1).any()  # causal
    assert np.diag(visible).all()
    assert visible[:, 0].all()
    assert abs(dropped - high) <= 4 * np.sqrt(high * (1 - high) / below.sum())
_ = panels[0].set_ylabel("query (what predicts)")

# %% [markdown]
# ## 5. Packing changes nothing
#
# Short chains are packed side by side into one row. Each example then must see itself alone, and must forget exactly
# what it would have forgotten in a row of its own. What is dropped for a pair is a function of (key, the example's own
# number, places inside the example), so it does:

# %%
examples = [
    chains(data.ChainFormat(templates="talk"), [record, rated, record | {"chosen": "Good."}]).draw(index, 0)
    for index in range(3)
]
unpacked = collate([[one] for one in examples])
packed = collate([examples])


def forgetful(batch):
    draws = jnp.take_along_axis(batch.extras["draw"], jnp.maximum(batch.example - 1, 0), axis=1)
    return losses.forgetful_causal_mask(
        key, *batch.tokens.shape, min_ratio=0.3, max_ratio=0.3, example_ids=draws, segment_ids=batch.example
    )


in_one_row, in_rows = np.asarray(forgetful(packed)[0]), np.asarray(forgetful(unpacked))
start = 0
for number, one in enumerate(examples):
    end = start + len(one.tokens)
    np.testing.assert_array_equal(in_one_row[start:end, start:end], in_rows[number, : end - start, : end - start])
    assert not in_one_row[start:end, :start].any()  # nor is a neighbour seen
    start = end

figure, axes = plt.subplots(figsize=(4.0, 4.0), layout="constrained")
axes.imshow(in_one_row, cmap="Blues", vmin=0, vmax=1.4)
axes.set(title="Three chains packed into one row", xlabel="key", ylabel="query")
_ = axes.grid(visible=False)

# %% [markdown]
# And the loss, and its gradient, with everything on: the recipe's objective is a pure function `(params, frozen,
# batch, key, extra) -> {term: (sum, weight, coefficient)}`, so we can simply call it on both layouts.

# %%
forget = recipes.HindsightObjective(forget_min_ratio=0.3, forget_max_ratio=0.3)
objective = recipes.hindsight_objective(config, forget)


@jax.jit
def total_and_gradient(params, batch):
    """The sum over learnt tokens, its gradient, and how many they are."""

    def total(params):
        terms, _ = objective.loss(params, {"base": {}}, batch, key, {})
        value, weight, _ = terms["feedback"]
        return value, weight

    (value, weight), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return value, gradient, weight


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert found[2] == expected[2]
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


apart, together = total_and_gradient(params, unpacked), total_and_gradient(params, packed)
assert_same(together, apart)
print(f"apart {apart[0]:.4f}, packed {together[0]:.4f} nats over {int(apart[2])} tokens")

# %% [markdown]
# ## 6. Nor do micro-batches
#
# Where memory is short, a batch is computed in pieces. Sums and weights are added up and divided once, so the pieces
# need not be of equal size; and what each example forgets does not know in which piece it is.


# %%
def rows(batch, part):
    return jax.tree.map(lambda leaf: leaf[part], batch)


pieces = [total_and_gradient(params, rows(unpacked, part)) for part in (slice(2), slice(2, 3))]
added = jax.tree.map(jnp.add, *pieces)
assert_same(added, apart)

means = [float(value / weight) for value, _, weight in pieces]
print(
    f"mean of the whole {apart[0] / apart[2]:.4f}; mean of the pieces' means {np.mean(means):.4f}: not the same thing"
)
assert abs(np.mean(means) - apart[0] / apart[2]) > 1e-3

# %% [markdown]
# Had the mask been drawn by row number, the second piece would have forgotten something else:

# %%
by_row = losses.forgetful_causal_mask(key, *unpacked.tokens.shape, min_ratio=0.3, max_ratio=0.3)[2]
of_piece = losses.forgetful_causal_mask(key, 1, unpacked.tokens.shape[1], min_ratio=0.3, max_ratio=0.3)[0]
assert (by_row != of_piece).any()
