"""Chain of Hindsight as a step: its loss by hand, what it forgets and when, a run that is stopped and goes on."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data, losses, models, recipes, sharding
from jaxalign.models import _kernels
from jaxalign.recipes import HindsightObjective
from jaxalign.recipes._fit_data import make_source
from jaxalign.recipes._scores import records_of_tokens
from jaxalign.training import OptimizerConfig, weighted_total
from tests.recipes import toy
from tests.tolerances import FLOAT32

CONFIG, KEY = toy.SHAPES["llama"], jax.random.key(0)
PAIRS = [record for record in toy.feedback_records() if len(record["responses"]) == 2]
NO_BASE = {"base": {}, "reference": {}}


def hindsight(**options):
    settings = HindsightObjective(**{"forget_max_ratio": 0.0} | options)
    return lambda config: recipes.hindsight_objective(config, settings)


@functools.cache
def batch(text=False, **form):
    """All of ``PAIRS`` as "good-bad" chains, and pretraining text where it is wanted."""
    chains = toy.chains(PAIRS, **{"structures": ("pn",), "template_names": ("good-bad",)} | form)
    config = recipes.FitConfig(batch_size=len(PAIRS))
    beside = toy.pretraining() if text else None
    return make_source(chains, config, sharding.parse_mesh("data=1"), 0, shuffle=False, pretraining=beside)[0]


def evaluated(rows, params=None, **options):
    """(total, its gradient, terms, metrics) of the training loss."""
    loss = hindsight(**options)(CONFIG).loss

    def total(params):
        terms, metrics = loss(params, NO_BASE, rows, KEY, {})
        return weighted_total(terms), (terms, metrics)

    tree = toy.params("llama") if params is None else params
    (value, (terms, metrics)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(tree)
    return float(value), gradient, terms, {name: float(s / n) for name, (s, n) in metrics.items()}


@functools.cache
def logits_of():
    return jax.jit(lambda params, tokens, example: models.logits(CONFIG, params, tokens, example=example))


def log_probs_of(ids):
    """log p of every token but the first after those before it, float64: one sequence in a row of its own."""
    row = np.zeros((1, 48), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(logits_of()(toy.params("llama"), row, np.ones_like(row)), float)[0, : len(ids) - 1]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs[np.arange(len(ids) - 1), ids[1:]]


@functools.cache
def written():
    """Of each of ``PAIRS`` its chain by hand: ids, and which are of the best and which of the worse output."""
    encode, found = toy.tokenizer().encode, []
    for record in PAIRS:
        first, second = record["responses"]
        best, worse = (first, second) if record["ratings"][0] > record["ratings"][1] else (second, first)
        parts = [(record["prompt"] + " good:", ""), (f"{best}<eos>", "best"), (" bad:", ""), (f"{worse}<eos>", "worse")]
        ids = [encode(text) for text, _ in parts]
        names = [name for some, (_, name) in zip(ids, parts, strict=True) for _ in some]
        found.append(([token for some in ids for token in some], np.array(names)))
    return found


@functools.cache
def log_probs_by_hand():
    """{"best": ..., "worse": ...}: log p of every output token of ``PAIRS``, from the model's logits."""
    found = {"best": [], "worse": []}
    for ids, names in written():
        for name, values in found.items():
            values.append(log_probs_of(ids)[names[1:] == name])
    return {name: np.concatenate(values) for name, values in found.items()}


def bits(tree):
    return [(leaf.dtype, leaf.tobytes()) for leaf in map(np.asarray, jax.tree.leaves(tree))]


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_tokens_of_outputs():
    rows = batch()
    tokens = [row[own].tolist() for row, own in zip(rows.tokens, rows.example > 0, strict=True)]
    assert tokens == [ids for ids, _ in written()]
    by_hand = log_probs_by_hand()
    value, _, terms, metrics = evaluated(rows)
    assert terms.keys() == {"feedback"}
    assert value == pytest.approx(-np.concatenate([*by_hand.values()]).mean(), rel=FLOAT32)
    assert metrics.keys() == {"nll/best", "nll/worse"}
    for name, log_probs in by_hand.items():
        assert metrics[f"nll/{name}"] == pytest.approx(-log_probs.mean(), rel=FLOAT32)


def of_hidden_states(rows, monkeypatch):
    """The loss as a function of what is added to the last hidden states ``[B, T, D]``, from which logits are made."""
    apply, loss, params = models.apply, hindsight()(CONFIG).loss, toy.params("llama")

    def value(added):
        monkeypatch.setattr(models, "apply", lambda *args, **more: apply(*args, **more) + added)
        return weighted_total(loss(params, NO_BASE, rows, KEY, {})[0])

    return value, np.zeros((*rows.tokens.shape, CONFIG.width), np.float32)


def test_prompts_and_feedback_reach_neither_value_nor_gradient(monkeypatch):
    rows = batch()
    predicts_output = np.zeros(rows.tokens.shape, bool)
    for row, (_, names) in zip(predicts_output, written(), strict=True):
        row[: len(names) - 1] = names[1:] != ""
    loss, nothing = of_hidden_states(rows, monkeypatch)
    gradient = jax.jit(jax.grad(loss))(nothing)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), predicts_output)
    loss = jax.jit(loss)
    noise = np.random.default_rng(0).normal(size=nothing.shape).astype(np.float32)
    assert loss(np.where(predicts_output[..., None], 0, noise)) == loss(nothing)
    assert loss(np.where(predicts_output[..., None], noise, 0)) != loss(nothing)


def test_markers_are_learnt_where_that_is_asked_for(monkeypatch):
    rows = batch(learn_markers=True)
    loss, nothing = of_hidden_states(rows, monkeypatch)
    learnt = np.any(jax.jit(jax.grad(loss))(nothing) != 0, axis=-1)
    for row, record, (ids, _) in zip(learnt, PAIRS, written(), strict=True):
        prompt = len(toy.tokenizer().encode(record["prompt"]))
        np.testing.assert_array_equal(np.flatnonzero(row), np.arange(prompt - 1, len(ids) - 1))


def test_unlikelihood_learns_the_best_and_unlearns_the_worse():
    by_hand = log_probs_by_hand()
    best, worse = -by_hand["best"].mean(), -np.log(-np.expm1(by_hand["worse"])).mean()
    value, gradient, terms, _ = evaluated(batch(), unlikelihood_weight=0.5)
    assert terms.keys() == {"feedback", "unlikelihood"}
    assert float(terms["unlikelihood"][0] / terms["unlikelihood"][1]) == pytest.approx(worse, rel=FLOAT32)
    assert value == pytest.approx(best + 0.5 * worse, rel=FLOAT32)
    assert bits(gradient) != bits(evaluated(batch())[1])
    assert evaluated(batch(), unlikelihood_weight=0.0)[0] == pytest.approx(best, rel=FLOAT32)


def made_certain(rows):
    """Rows and parameters of a model that finds nearly every target certain: log p is 0."""
    params = {**toy.params("llama")}
    params["final_norm"] = {"scale": 1e3 * params["final_norm"]["scale"]}
    likeliest = np.argmax(logits_of()(params, rows.tokens, rows.example), axis=-1)
    rows = rows.replace(targets=np.take_along_axis(likeliest, rows.source_index, axis=1))
    log_probs = np.asarray(jax.jit(functools.partial(recipes.score_targets, CONFIG))(params, rows))[rows.target_mask]
    assert np.mean(log_probs == 0) > 0.8
    return rows, params


@pytest.mark.parametrize("certain", [False, True])
def test_without_worse_outputs_there_is_nothing_to_unlearn(certain):
    """Also where the model is certain of its token: log(1 - p) has no slope there."""
    rows, params = batch(structures=("p",)), toy.params("llama")
    assert not rows.extras["negative"].any()
    if certain:
        rows, params = made_certain(rows)
    value, gradient, terms, _ = evaluated(rows, params, unlikelihood_weight=0.5)
    assert [float(part) for part in terms["unlikelihood"]] == [0, 0, 0.5]
    expected, expected_gradient, *_ = evaluated(rows, params)
    assert value == pytest.approx(expected, rel=FLOAT32)
    for found, wanted in zip(*map(jax.tree.leaves, (gradient, expected_gradient)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=FLOAT32, atol=FLOAT32 * np.abs(wanted).max())


def test_what_is_certain_is_unlearnt_with_finite_gradients():
    rows, params = made_certain(batch())
    value, gradient, *_ = evaluated(rows, params, unlikelihood_weight=1.0)
    assert 1 < value < 14
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_pretraining_text_adds_its_own_mean():
    rows = batch(text=True)
    text = rows.pretraining
    assert text.tokens.shape == (16, 12)
    assert rows.tokens.shape[0] == len(PAIRS)
    by_hand = []
    for ids, example in zip(text.tokens, text.example, strict=True):
        for number in range(1, example.max() + 1):
            by_hand += [*log_probs_of(ids[example == number])]
    feedback = -np.concatenate([*log_probs_by_hand().values()]).mean()
    assert len(by_hand) == text.target_mask.sum() > 100
    for weight, expected in ((None, 1.5), (0.25, 0.25)):
        value, _, terms, _ = evaluated(rows, pretraining_weight=weight)
        assert terms["pretraining"][2] == expected
        assert value == pytest.approx(feedback - expected * np.mean(by_hand), rel=FLOAT32)


def test_without_weight_or_text_there_is_no_pretraining_term():
    value, gradient, terms, _ = evaluated(batch())
    for rows, weight in ((batch(), 3.0), (batch(text=True), 0.0)):
        other, other_gradient, *_ = evaluated(rows, pretraining_weight=weight)
        assert other == pytest.approx(value, rel=FLOAT32)
        for found, expected in zip(*map(jax.tree.leaves, (other_gradient, gradient)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * np.abs(expected).max())
    assert "pretraining" not in terms


# --- the forgetful causal mask ----------------------------------------------------------------------------------------


def test_without_a_ratio_five_steps_are_sfts_bit_for_bit():
    """An objective that does not know the mask, on the same draws: nothing of it is left in the step."""
    chains = toy.chains()
    listed = [chains.draw(index, 0) for index in range(len(chains))]
    assert any(len(set(example.target_extras["negative"].tolist())) == 2 for example in listed)
    found, expected = (toy.train("llama", listed, make) for make in (hindsight(), recipes.likelihood_objective))
    assert found.losses.tobytes() == expected.losses.tobytes()
    assert bits(found.params) == bits(expected.params)
    assert bits(found.params[-1]) != bits(found.params[0])


def test_a_mask_of_ratio_zero_is_no_mask_bit_for_bit():
    rows, params = batch(), toy.params("llama")
    count, length = rows.tokens.shape
    none = losses.forgetful_causal_mask(
        KEY, count, length, min_ratio=0.0, max_ratio=0.0, example_ids=records_of_tokens(rows), segment_ids=rows.example
    )
    score = jax.jit(lambda mask: recipes.score_targets(CONFIG, params, rows, attention_mask=mask))
    np.testing.assert_array_equal(score(none), score(None))


def fit(
    examples, folder=None, *, report=lambda *_: None, pretraining=None, eval_examples=(), objective=None, **changes
):
    config = recipes.FitConfig(**{
        "max_steps": 2, "batch_size": 4, "mesh": "data=1", "optimizer": OptimizerConfig(learning_rate=1e-2),
    } | changes)  # fmt: skip
    return recipes.fit(
        CONFIG, toy.params("llama"), examples, hindsight(**objective or {}), config,
        directory=folder, report=report, pretraining=pretraining, eval_examples=eval_examples,
    )  # fmt: skip


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_evaluation_forgets_nothing(tmp_path):
    found = {}
    for ratio in (0.0, 0.5):
        folder = tmp_path / str(ratio)
        forget = {"forget_min_ratio": ratio, "forget_max_ratio": ratio}
        fit(toy.chains(), folder, eval_examples=toy.chains(PAIRS), objective=forget, max_steps=1)
        before, step, _ = rows_of(folder)
        found[ratio] = before["eval/loss"], before["eval/nll/worse"], step["loss"]
    assert found[0.0][:2] == found[0.5][:2]
    assert found[0.0][2] != found[0.5][2]


@pytest.fixture
def attended(monkeypatch):
    """The weights ``[B, T, H, S]`` of every attention that runs, read through one-hot values."""
    seen, attention = [], _kernels.attention
    toy.params("llama")  # making them attends, too

    def spy(query, key, value, visible, **options):
        keys, size = value.shape[2:]
        hot = jnp.eye(keys).reshape(keys, -1, size)
        parts = [
            attention(query, key, jnp.broadcast_to(hot[:, part], value.shape), visible, **options)
            for part in range(hot.shape[1])
        ]
        jax.debug.callback(lambda weights: seen.append(np.asarray(weights)), jnp.concatenate(parts, axis=-1))
        return attention(query, key, value, visible, **options)

    monkeypatch.setattr(_kernels, "attention", spy)
    return seen


@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_heads_and_layers_forget_alike_and_frozen_ones_too(attended, frozen_layers):
    rows, ratio = batch(), 0.3
    split, own, base = models.freeze(CONFIG, toy.params("llama"), frozen_layers)
    objective = hindsight(forget_min_ratio=ratio, forget_max_ratio=ratio)(split)
    for loss in (objective.loss, objective.evaluation):
        jax.jit(loss)(own, {"base": base, "reference": {}}, rows, KEY, {})
        jax.effects_barrier()
    assert len(attended) == 2 * CONFIG.layers
    visible = np.array(attended) > 0  # [layers, B, T, H, S], of training and then of evaluation
    training, evaluation = visible[: CONFIG.layers], visible[CONFIG.layers :]
    real = rows.example > 0
    index = np.arange(rows.tokens.shape[1])
    past = real[:, :, None] & real[:, None, :] & (index[:, None] >= index)
    for layer in range(CONFIG.layers):
        for head in range(CONFIG.heads):
            np.testing.assert_array_equal(training[layer, :, :, head][real], training[0, :, :, 0][real])
            np.testing.assert_array_equal(evaluation[layer, :, :, head][real], past[real])
    mask = training[0, :, :, 0]
    assert not (mask & ~past)[real].any()
    always = past & ((index[:, None] == index) | (index == 0))
    assert mask[always].all()
    dropped = ~mask[past & ~always]
    assert abs(dropped.mean() - ratio) < 5 * np.sqrt(ratio * (1 - ratio) / dropped.size)


def test_every_step_forgets_anew_and_a_resumed_run_the_same(monkeypatch, tmp_path):
    """One record, so that steps differ in nothing but their key."""
    seen, make = {}, losses.forgetful_causal_mask

    def spy(key, *args, **options):
        mask = make(key, *args, **options)
        jax.debug.callback(
            lambda key, mask: seen.update({key.tobytes(): mask.tobytes()}), jax.random.key_data(key), mask
        )
        return mask

    monkeypatch.setattr(losses, "forgetful_causal_mask", spy)

    def masks(*lengths, folder):
        seen.clear()
        for steps in lengths:
            options = {"objective": {"forget_max_ratio": 0.5}, "batch_size": 1, "max_steps": steps}
            fit(toy.chains(PAIRS[:1]), folder, **options)
        jax.effects_barrier()
        return dict(seen)

    whole = masks(4, folder=tmp_path / "whole")
    assert len(whole) == len(set(whole.values())) == 4
    assert masks(2, 4, folder=tmp_path / "halves") == whole


# --- a run that is stopped --------------------------------------------------------------------------------------------


def test_twenty_steps_are_ten_a_signal_and_ten_bit_for_bit(tmp_path):
    """Templates, structures and forgetful masks are drawn, two sources mixed, an epoch ends inside a batch."""
    records = toy.feedback_records()

    def run(folder, **more):
        chains = toy.chains(records, sources=[0] * 5 + [1] * 3, weights=(1, 2), structures=("pn", "np=2", "p"))
        assert chains.draw(0, 0).tokens.tolist() != chains.draw(0, 1).tokens.tolist()
        forget = {"forget_max_ratio": 0.3}
        options = {"batch_size": 6, "max_steps": 20, "save_every": 7, "objective": forget}
        return fit(chains, folder, pretraining=toy.pretraining(4), **options, **more)

    def stop(done, total, note):
        if done == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "parts", report=stop)
    assert stopped.interrupted
    assert 10 <= stopped.step < 14
    result = run(tmp_path / "parts")
    assert result.step == whole.step == 20
    assert bits(result.params) == bits(whole.params)
    clock = {"seconds", "tokens_per_second", "time"}
    tables = [
        [{name: value for name, value in row.items() if name not in clock} for row in rows_of(tmp_path / folder)]
        for folder in ("whole", "parts")
    ]
    assert tables[0] == tables[1]
    assert len({row["loss"] for row in tables[0]}) == 20
    assert {"loss/feedback", "loss/pretraining", "nll/best", "nll/worse"} <= tables[0][-1].keys()


# --- likelihood margins -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [False, True])
def test_likelihood_margins_are_those_of_the_models_logits(average):
    """Every pair of every record, each answer in a row of its own after the words of a good one."""
    encode, records = toy.tokenizer().encode, toy.feedback_records()[:3]
    prompts = data.FeedbackPrompts(toy.chains().writer)
    examples = [prompts.comparison(record) for record in records]
    expected = []
    for record in records:
        asked = encode(record["prompt"] + " good:")
        scores = []
        for response in record["responses"]:
            own = log_probs_of([*asked, *encode(f"{response}<eos>")])[len(asked) - 1 :]
            scores.append(np.mean(own) if average else np.sum(own))
        ratings = record["ratings"]
        expected += [a - b for a, i in zip(scores, ratings, strict=True) for b, j in zip(scores, ratings, strict=True)
                     if i > j]  # fmt: skip
    mesh = sharding.parse_mesh("data=1")
    found = recipes.likelihood_margins(CONFIG, toy.params("llama"), examples, average=average, mesh=mesh, batch_size=2)
    assert found.dtype == np.float32
    assert len(found) == 5
    np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * np.abs(expected).max())
