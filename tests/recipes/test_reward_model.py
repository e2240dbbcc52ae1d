"""Reward models: scores that nothing else changes, what they learn, the best checkpoint, the folder they end in."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import data, losses, models, recipes
from jaxalign.cli._main import main
from jaxalign.errors import InputError
from jaxalign.recipes import RewardObjective, reward_model
from jaxalign.recipes._reward import _beats
from jaxalign.training import OptimizerConfig, Watchdog
from tests.recipes import toy
from tests.tolerances import FLOAT32


@pytest.fixture(scope="module")
def scored():
    """A reward model: Llama's shape with a new head."""
    return models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(5))


@pytest.fixture(scope="module")
def ranked():
    return toy.examples(toy.ranked_records())


def scores_of(scored, examples, **options):
    """One score a sequence, in the order of the examples."""
    config, params = scored
    source = data.make_batches(examples, batch_size=len(examples), shuffle=False, num_epochs=1, **options)
    found = {}
    for batch in data.make_iterator(source):
        rows = np.asarray(recipes.sequence_scores(config, params, batch))
        for row, ids in zip(rows, batch.record_ids, strict=True):
            slot = 0
            for record in ids[ids >= 0]:
                count = next(example.sequences for example in examples if example.record_id == record)
                found[int(record)] = row[slot : slot + count]
                slot += count
    return np.concatenate([found[example.record_id] for example in examples])


def by_hand(scored, examples):
    """Every answer alone in a row of its own length, the score at its last token."""
    config, params = scored
    found = []
    for example in examples:
        prompt = example.tokens[example.branch == 0]
        for answer in range(example.sequences):
            ids = jnp.concatenate([prompt, example.tokens[example.branch == answer + 1]])
            hidden = models.apply(config, params, ids[None])
            found.append(float(models.score(config, params, hidden[0, -1])[0]))
    return np.array(found)


def test_a_score_depends_on_its_answer_alone(scored, ranked):
    expected = by_hand(scored, ranked)
    assert np.ptp(expected) > 0.1
    for options in ({}, {"layout": "two_rows"}, {"pack": True, "max_length": 48}, {"pad_token": 7}):
        np.testing.assert_allclose(
            scores_of(scored, ranked, **options), expected, rtol=FLOAT32, atol=FLOAT32, err_msg=str(options)
        )
    alone = np.concatenate([scores_of(scored, [example]) for example in ranked])
    np.testing.assert_allclose(alone, expected, rtol=FLOAT32, atol=FLOAT32)


def test_answers_of_one_token_and_answers_that_begin_alike(scored):
    answers = [[9], [9, 4], [9, 4, 6], [3], [9]]
    example = data.answers_example([5, 6, 7], answers, pairs=[(0, 3)])
    plain = data.answers_example([5, 6, 7], [[9, 4]], record_id=1, branched=False)
    expected = by_hand(scored, [example])
    np.testing.assert_allclose(scores_of(scored, [example]), expected, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(scores_of(scored, [example], layout="two_rows"), expected, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(scores_of(scored, [plain])[0], expected[1], rtol=FLOAT32, atol=FLOAT32)


def test_rankings_by_pairs_are_plackett_luce(ranked):
    batch = next(data.make_iterator(data.make_batches(ranked, batch_size=3, shuffle=False)))
    scores = jnp.asarray(np.random.default_rng(0).normal(size=batch.sequence_mask.shape), jnp.float32)
    found = np.asarray(losses.partial_plackett_luce(scores, _beats(batch))).sum(axis=1)
    for row, record in enumerate(toy.ranked_records()):
        order = np.argsort(record["ratings"])[::-1]
        if len(set(record["ratings"])) == 3:
            expected = losses.plackett_luce(scores[row][order], jnp.ones(3, bool))
        else:  # 1, 1, 0: each of the best against the worst alone
            pairs = [losses.bradley_terry(scores[row][i], scores[row][2]) for i in (0, 1)]
            expected = sum(pairs)
        np.testing.assert_allclose(found[row], expected, rtol=FLOAT32)


def sentiment_rewards(count, seed):
    """Records whose answers are preferred by a Bradley-Terry model of a true reward: good words minus bad ones."""
    generator = np.random.default_rng(seed)
    worth = dict(zip(toy.WORDS, generator.permutation(len(toy.WORDS)) / 3.0, strict=True))
    records, truth = [], []
    for _ in range(count):
        prompt = " ".join(["", *generator.choice(toy.WORDS, 2)])
        answers = [list(generator.choice(toy.WORDS, 3)) for _ in range(2)]
        rewards = [sum(worth[word] for word in answer) for answer in answers]
        first = generator.random() < 1 / (1 + np.exp(rewards[1] - rewards[0]))
        order = (0, 1) if first else (1, 0)
        chosen, rejected = (" ".join(["", *answers[side]]) for side in order)
        records.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        truth.append([rewards[side] for side in order])
    return records, np.array(truth)


def test_the_recipe_recovers_the_reward_that_made_the_preferences():
    worth = sentiment_rewards(2600, 0)
    records, truth = worth
    examples = toy.examples(records)
    config, params = models.add_score_head(
        toy.SHAPES["llama"], models.init(toy.SHAPES["llama"], jax.random.key(0)), jax.random.key(1)
    )
    settings = recipes.FitConfig(
        max_steps=200,
        batch_size=64,
        mesh="data=1",
        optimizer=OptimizerConfig(learning_rate=5e-3, schedule="cosine", warmup_steps=10, clip_norm=1.0),
    )
    result = recipes.fit(
        config,
        params,
        examples[:2400],
        lambda config: recipes.reward_objective(config, RewardObjective()),
        settings,
        report=lambda *_: None,
    )
    scores = scores_of((result.config, result.params), examples[2400:]).reshape(-1, 2)
    # A constant a prompt is free: differences of the two answers to one prompt are what can be known.
    found, expected = scores[:, 0] - scores[:, 1], truth[2400:, 0] - truth[2400:, 1]
    assert np.corrcoef(found, expected)[0, 1] >= 0.95


def objective(**options):
    return lambda config: recipes.reward_objective(config, RewardObjective(**options))


def test_the_margin_is_asked_for_and_centering_pulls(scored):
    records = [{**record, "margin": 0.5 + index} for index, record in enumerate(toy.pair_records())]
    examples = toy.examples(records)
    batch = next(data.make_iterator(data.make_batches(examples, batch_size=8, shuffle=False)))
    config, params = scored
    scores = scores_of(scored, examples).reshape(-1, 2)
    terms, metrics = objective(margin=True, centering=0.1)(config).loss(
        params, {"base": {}}, batch, jax.random.key(0), {}
    )
    expected = -np.log(1 / (1 + np.exp(-(scores[:, 0] - scores[:, 1] - (0.5 + np.arange(8))))))
    np.testing.assert_allclose(terms["bradley_terry"][0], expected.sum(), rtol=1e-4)
    np.testing.assert_allclose(terms["centering"][0], ((scores.sum(axis=1)) ** 2).sum(), rtol=1e-4)
    assert (terms["bradley_terry"][1], terms["centering"][2]) == (8, 0.1)
    assert metrics["rewards/accuracy"][0] == (scores[:, 0] > scores[:, 1]).sum()
    plain = toy.examples(toy.pair_records())
    batch = next(data.make_iterator(data.make_batches(plain, batch_size=8, shuffle=False)))
    with pytest.raises(InputError, match="--margin: the records have no field 'margin'"):
        objective(margin=True)(config).loss(params, {"base": {}}, batch, jax.random.key(0), {})


@pytest.mark.parametrize("options", [{"accumulation": 3}, {"packing": True, "row_length": 64, "batch_size": 2}, {
    "mesh": "data=1,fsdp=3,tensor=1", "batch_size": 3}, {"pair_layout": "two_rows"}],
    ids=["micro-batches", "packed", "mesh", "two-rows"])  # fmt: skip
def test_batching_changes_only_rounding(scored, ranked, options, monkeypatch):
    monkeypatch.setitem(toy.SHAPES, "scored", scored[0])
    loss = objective(reward_loss="plackett_luce", centering=0.05)
    plain = toy.train("scored", ranked, loss, start=scored[1], steps=2)
    toy.assert_same_run(toy.train("scored", ranked, loss, start=scored[1], steps=2, **options), plain)


def test_the_best_evaluation_is_kept_and_survives_an_interruption(scored, ranked, tmp_path):
    config, params = scored
    values = [0.1, 0.5, 0.9, 0.3, 0.9, 0.2]
    seen = []

    def fit(folder, **changes):
        settings = recipes.FitConfig(**{
            "max_steps": 5, "batch_size": 3, "eval_every": 1, "mesh": "data=1", "save_every": 1,
            "optimizer": OptimizerConfig(learning_rate=1e-2),
        } | changes)  # fmt: skip

        def evaluate(step, tree):
            seen.append((step, np.asarray(tree["score"]["kernel"]).copy()))
            return {"quality": values[step]}

        return recipes.fit(
            config, params, ranked, objective(), settings, directory=folder, evaluate=evaluate,
            keep_best="quality", report=lambda *_: None,
        )  # fmt: skip

    whole = fit(tmp_path / "whole")
    assert (whole.step, whole.best_step) == (5, 2)
    kernel = dict(seen)[2]
    np.testing.assert_array_equal(whole.params["score"]["kernel"], kernel)
    fit(tmp_path / "halves", max_steps=3)
    again = fit(tmp_path / "halves")
    assert again.best_step == 2
    for one, two in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(InputError, match="keep_best: 'nothing'"):
        recipes.fit(
            config, params, ranked, objective(), recipes.FitConfig(max_steps=1, batch_size=3, mesh="data=1"),
            evaluate=lambda *_: {"quality": 1.0}, keep_best="nothing", report=lambda *_: None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def waits():
    """What the run of ``folder`` waited for, and whether as for what is slow."""
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory, waits):
    """What ``jaxalign reward`` leaves."""
    root = tmp_path_factory.mktemp("reward")
    toy.write_model(root / "model")
    toy.write_jsonl(root / "train.jsonl", toy.pair_records())
    toy.write_jsonl(root / "held.jsonl", toy.ranked_records())
    toy.write_jsonl(root / "demonstrations.jsonl", toy.demonstrations())
    flags = {
        "--model": root / "model", "--dataset": root / "train.jsonl", "--eval-dataset": root / "held.jsonl",
        "--normalise-dataset": root / "demonstrations.jsonl", "--output-dir": root / "run", "--max-steps": 4,
        "--batch-size": 4, "--mesh": "data=1", "--learning-rate": 0.01, "--eval-every": 2, "--lora-rank": 2,
        "--normalise-variance": True,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watchdog, "wait_for", lambda self, what, *, slow=False: waits.append((what, slow)))
        assert main(["reward", *(str(part) for pair in flags.items() for part in pair)]) == 0
    return root


def test_every_batch_that_is_scored_has_a_time_of_its_own(folder, waits):
    demonstrations, held_out = "demonstrations to be scored", "held-out pairs to be scored"
    assert waits[-6:] == [
        (demonstrations, True),
        (f"{demonstrations}, 5 of 8 done", True),  # four rows, in one of which are two
        (f"{demonstrations}, 8 of 8 done", True),
        (f"{folder}/run/final to be written", True),
        (held_out, True),
        (f"{held_out}, 3 of 3 done", True),
    ]


def test_the_folder_holds_the_rewards_zero_and_scale(folder):
    model = models.load_reward_model(folder / "run" / "final")
    about = json.loads((folder / "run" / "final" / "reward.json").read_text())
    assert about["measured_answers"] == 8
    assert "demonstrations.jsonl" in about["measured_on"]
    scores = scores_of((model.config, model.params), toy.examples(toy.demonstrations()))
    rewards = (scores - model.mean) / model.std
    np.testing.assert_allclose([rewards.mean(), rewards.std()], [0, 1], atol=1e-5)
    found = json.loads((folder / "run" / "evaluation.json").read_text())
    assert found["pairs"] == 8
    assert sum(part["count"] for part in found["bins"]) == 8
    held = reward_model.pair_margins(model.config, model.params, toy.examples(toy.ranked_records()))
    assert found["accuracy"] == pytest.approx((held > 0).mean())
    assert found["mean_margin"] == pytest.approx(held.mean(), rel=1e-4)
    start = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(0))[1]
    assert np.abs(np.asarray(model.params["score"]["kernel"]) - start["score"]["kernel"]).max() > 1e-4  # it trains too


def test_the_folders_padding_is_not_its_eos(tmp_path, scored):
    import copy

    tokenizer = copy.deepcopy(toy.tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    model = models.RewardModel(*scored)
    models.save_reward_model(tmp_path, model, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pad_token_id"] not in (None, config["eos_token_id"])
    assert recipes.load_tokenizer(tmp_path).pad_token_id == config["pad_token_id"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # the caller's is as it was


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "mean"), ('{"mean": 0, "std": 0}', "std"), ("[", "reward.json"), ('{"mean": NaN, "std": 1}', "finite")],
)
def test_a_broken_normalisation_is_named(folder, tmp_path, content, message):
    import shutil

    shutil.copytree(folder / "run" / "final", tmp_path / "final")
    (tmp_path / "final" / "reward.json").write_text(content)
    with pytest.raises(InputError, match=message):
        models.load_reward_model(tmp_path / "final")


def test_a_language_model_is_no_reward_model(folder):
    with pytest.raises(InputError, match="a language model, not a reward model"):
        models.load_reward_model(folder / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"centering": -1.0}, "--centering"), ({"margin": True, "reward_loss": "plackett_luce"}, "--margin")],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RewardObjective(), **changes)
