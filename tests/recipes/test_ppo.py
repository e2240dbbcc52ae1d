"""PPO as a run: identities of its first minibatch, invariances, exact resume, rewards that fail."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxalign import data, models, recipes, training
from jaxalign.errors import InputError
from jaxalign.recipes import PPOFitConfig
from jaxalign.recipes import _actor_critic as actor_critic
from jaxalign.recipes._ppo_update import minibatch_rows
from jaxalign.recipes._scores import sequence_scores
from jaxalign.training import OptimizerConfig
from tests.recipes import toy
from tests.tolerances import FLOAT32, SAMPLER_LOG_PROBS

EOS = 0
SGD = OptimizerConfig(optimizer="sgd", learning_rate=0.05)
ADAM = OptimizerConfig(learning_rate=1e-2, clip_norm=1.0)


@pytest.fixture(scope="module")
def prompts():
    records = [{"prompt": text} for text in (" the film was", " the plot was fun but", " it", " good and bad")]
    return data.build_prompts(records * 3, toy.tokenizer())[0]


def likes_short_tokens(contents, completions):
    """A text reward: fewer characters are better."""
    assert all(isinstance(content, str) for content in contents)
    return [-0.05 * len(completion) for completion in completions]


def settings(**changes):
    return PPOFitConfig(**{
        "max_steps": 3, "batch_size": 8, "minibatches": 2, "ppo_epochs": 2, "max_new_tokens": 6, "sampling_batch": 8,
        "optimizer": ADAM, "mesh": "data=1", "samples_per_prompt": 2, "save_every": 100,
    } | changes)  # fmt: skip


def fit(prompts, config, *, reward=likes_short_tokens, shape="llama", folder=None, decode=None, **more):
    found = []
    result = recipes.fit_ppo(
        toy.SHAPES[shape],
        toy.params(shape),
        prompts,
        reward,
        config,
        decode=decode or toy.tokenizer().decode,
        stop_tokens=(EOS,),
        directory=folder,
        report=lambda *_: None,
        **more,
    )
    if folder is not None:
        found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result, [row for row in found if "loss" in row]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def plain(prompts, tmp_path_factory):
    """A run of three updates, its result and its rows."""
    return fit(prompts, settings(), folder=tmp_path_factory.mktemp("plain"))


def test_the_first_minibatch_is_at_ratio_one(plain):
    rows = plain[1]
    assert len(rows) == 3
    for row in rows:
        assert abs(row["first_minibatch/ratio"] - 1) < 1e-6
        assert row["first_minibatch/ratio_var"] < 1e-10
        assert row["first_minibatch/approxkl"] < 1e-10
        assert row["first_minibatch/clipfrac"] == 0
        assert row["policy/approxkl_avg"] > 1e-6  # the later minibatches are not
        assert row["policy/optimizer_steps"] == 4


def test_the_sampler_scores_as_training_does(plain):
    for row in plain[1]:
        assert 0 < row["sampler/log_prob_gap_max"] <= SAMPLER_LOG_PROBS
        assert row["sampler/log_prob_gap_mean"] <= row["sampler/log_prob_gap_max"]


def test_the_kl_is_zero_at_first_and_then_grows(plain):
    rows = plain[1]
    assert rows[0]["objective/kl"] == 0
    assert rows[2]["objective/kl"] > 0
    assert rows[0]["objective/rlhf_reward"] == rows[0]["objective/scores"]
    for row in rows:
        sums = row["objective/scores"] + row["objective/non_score_reward"]
        assert abs(row["objective/rlhf_reward"] - sums) < FLOAT32
        assert row["objective/non_score_reward"] == pytest.approx(-0.05 * row["objective/kl"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic": "shared", "kl_target": 0.1, "kl_horizon": 8.0, "stop_kl": 1e-9, "minibatches": 4},
        {"lora_rank": 2, "kl_estimator": "k3", "score_at": "after_eos", "missing_eos_penalty": 0.1},
        {"overlap_rewards": True},
    ],
    ids=["separate", "shared-adaptive", "lora", "overlapped"],
)
def test_two_halves_are_the_whole_bit_for_bit(prompts, changes, tmp_path):
    config = settings(max_steps=4, **changes)
    whole, rows = fit(prompts, config, folder=tmp_path / "whole")
    fit(prompts, dataclasses.replace(config, max_steps=2), folder=tmp_path / "halves")
    halves, rows_again = fit(prompts, config, folder=tmp_path / "halves")
    assert whole.step == halves.step == 4
    assert bits(whole.params) == bits(halves.params)
    clock = {"seconds", "tokens_per_second", "rollout/seconds", "rollout/reward_seconds"}
    for row, again in zip(rows, rows_again, strict=True):
        assert {k: v for k, v in row.items() if k not in clock} == {k: v for k, v in again.items() if k not in clock}
    assert bits(whole.params) != bits(toy.params("llama"))
    if config.kl_target:
        errors = [np.clip(row["objective/kl"] / config.kl_target - 1, -0.2, 0.2) for row in rows]
        expected = 0.05 * np.cumprod([1.0, *(1 + np.array(errors))])[:4]
        np.testing.assert_allclose([row["objective/kl_coefficient"] for row in rows], expected, rtol=1e-5)
        assert len(set(errors)) > 1
    if config.stop_kl:  # the first minibatch is at ratio 1, the second is not, and is not taken
        assert [row["policy/optimizer_steps"] for row in rows] == [1, 1, 1, 1]


@pytest.mark.parametrize("changes", [{"frozen_layers": 1}, {"lora_rank": 2}], ids=str)
def test_a_critic_that_shares_what_is_frozen_is_the_one_that_does_not(changes, prompts, monkeypatch):
    """An update is the same to the bit, where the critic starts as the policy, with one frozen copy and with two."""
    config = settings(max_steps=1, **changes)
    real, shared = actor_critic._held_once, []

    def held_once(tree, other):
        found = real(tree, other)
        policys = set(map(id, jax.tree.leaves(other)))
        shared.extend(id(leaf) in policys for leaf in jax.tree.leaves(found))
        return found

    monkeypatch.setattr(actor_critic, "_held_once", held_once)
    once = fit(prompts, config)[0]
    assert any(shared)
    monkeypatch.setattr(actor_critic, "_held_once", lambda tree, other: tree)
    twice = fit(prompts, config)[0]
    assert bits(once.params) == bits(twice.params) != bits(toy.params("llama"))
    assert once.metrics["loss/value_avg"] == twice.metrics["loss/value_avg"] > 0


def test_an_overlapped_rollout_is_one_update_old(prompts, tmp_path):
    rows = fit(prompts, settings(overlap_rewards=True), folder=tmp_path)[1]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1]
    assert rows[0]["first_minibatch/approxkl"] < 1e-10
    assert rows[1]["first_minibatch/approxkl"] > 1e-8  # an old policy's samples: the ratio says so


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4},
        {"mesh": "data=2,fsdp=2,tensor=1"},
        {"mesh": "sequence=4"},
        {"mesh": "data=2,sequence=2,tensor=2", "critic": "shared"},
    ],
    ids=["micro-batches", "mesh", "sequence", "three axes, a shared critic"],
)
def test_micro_batches_and_the_mesh_change_only_rounding(prompts, changes, tmp_path):
    common = {"minibatches": 1, "ppo_epochs": 1, "max_steps": 1, "optimizer": SGD}
    common |= {name: value for name, value in changes.items() if name == "critic"}
    plain, rows = fit(prompts, settings(**common), folder=tmp_path / "plain")
    other, other_rows = fit(prompts, settings(**common | changes), folder=tmp_path / "other")
    for name in ("loss", "objective/scores", "objective/kl", "loss/value_avg", "policy/entropy_avg", "grad_norm"):
        np.testing.assert_allclose(other_rows[0][name], rows[0][name], rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    for one, two in zip(jax.tree.leaves(plain.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(two, one, rtol=FLOAT32, atol=FLOAT32 * np.abs(one).max())


def test_a_run_goes_on_with_other_micro_batches_and_sampled_in_other_parts(prompts, tmp_path):
    common = {"minibatches": 1, "ppo_epochs": 1, "optimizer": SGD}
    plain, rows = fit(prompts, settings(max_steps=2, **common), folder=tmp_path / "plain")
    fit(prompts, settings(max_steps=1, **common), folder=tmp_path / "other")
    changed = settings(max_steps=2, accumulation=2, sampling_batch=4, **common)
    other, other_rows = fit(prompts, changed, folder=tmp_path / "other")
    for name in ("loss", "objective/scores", "objective/kl", "grad_norm"):
        np.testing.assert_allclose(other_rows[1][name], rows[1][name], rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    for one, two in zip(jax.tree.leaves(plain.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(two, one, rtol=FLOAT32, atol=FLOAT32 * np.abs(one).max())


def test_a_shuffle_is_new_in_every_pass_and_nothing_is_left_out():
    key = jax.random.key(3)
    passes = [[minibatch_rows(key, 4 * epoch + part, 16, 4) for part in range(4)] for epoch in range(3)]
    for one in passes:
        assert sorted(np.concatenate(one).tolist()) == list(range(16))
    assert len({np.concatenate(one).tobytes() for one in passes}) == 3


def test_ppo_raises_the_reward_and_a_larger_beta_keeps_it_nearer(prompts, tmp_path):
    many = prompts * 4
    runs = {}
    for beta in (0.01, 1.0):
        config = settings(max_steps=25, batch_size=48, samples_per_prompt=1, kl_coefficient=beta, minibatches=1)
        runs[beta] = fit(many, config, folder=tmp_path / str(beta))[1]
    scores = [row["objective/scores"] for row in runs[0.01]]
    assert np.mean(scores[-3:]) > np.mean(scores[:3]) + 0.1
    assert runs[1.0][-1]["objective/kl"] < 0.5 * runs[0.01][-1]["objective/kl"]


def test_a_reward_model_rates_on_the_devices(prompts, tmp_path):
    config, tree = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(1))
    reward = models.RewardModel(config, tree, mean=0.3, std=2.0)
    rows = fit(prompts, settings(max_steps=1), reward=reward, folder=tmp_path)[1]

    seen = []

    def by_hand(contents, completions):
        for content, completion in zip(contents, completions, strict=True):
            seen.append((toy.tokenizer()(content)["input_ids"], list(map(int, completion.split()))))
        return [0.0] * len(completions)

    as_ids = {"decode": lambda ids: " ".join(map(str, ids))}
    text_rows = fit(prompts, settings(max_steps=1), reward=by_hand, folder=tmp_path / "text", **as_ids)[1]
    assert text_rows[0]["val/finished"] == 0  # no EOS: the texts are the whole responses
    examples = [data.answers_example(prompt, [answer]) for prompt, answer in seen]
    batch = next(data.make_iterator(data.make_batches(examples, batch_size=len(examples), shuffle=False)))
    expected = (np.asarray(sequence_scores(config, tree, batch))[:, 0] - 0.3) / 2.0
    np.testing.assert_allclose(rows[0]["objective/scores"], expected.mean(), rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(rows[0]["objective/scores_std"], expected.std(), rtol=FLOAT32, atol=FLOAT32)
    # The critic starts as the reward model: its value of the last state is near the reward, not 0.
    assert rows[0]["val/value_mean"] != 0


def test_a_rollout_on_pieces_of_rows_is_worth_the_same(prompts, tmp_path):
    """The reward model and the critic that starts as it, over several minibatches and micro-batches."""
    config, tree = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(1))
    reward = models.RewardModel(config, tree, mean=0.3, std=2.0)
    common = {"max_steps": 1, "optimizer": SGD, "accumulation": 2}
    plain, rows = fit(prompts, settings(**common), reward=reward, folder=tmp_path / "plain")
    other, split = fit(prompts, settings(**common, mesh="sequence=4"), reward=reward, folder=tmp_path / "split")
    for name in ("objective/scores", "objective/scores_std", "val/value_mean", "policy/approxkl_avg", "loss/value_avg"):
        np.testing.assert_allclose(split[0][name], rows[0][name], rtol=FLOAT32, atol=FLOAT32, err_msg=name)
    for one, two in zip(jax.tree.leaves(plain.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(two, one, rtol=FLOAT32, atol=FLOAT32 * np.abs(one).max())


def test_the_critic_starts_at_zero_without_a_reward_model(plain):
    assert plain[1][0]["val/value_mean"] == 0
    assert plain[1][1]["val/value_mean"] != 0


def test_the_rate_falls_over_the_run_also_where_rollouts_are_given_up(prompts, tmp_path):
    """Steps that ``stop_kl`` does not take count for the schedule: what is logged is what was applied."""
    falling = dataclasses.replace(ADAM, schedule="linear")
    config = settings(optimizer=falling, stop_kl=1e-9, minibatches=4, ppo_epochs=1)
    rows = fit(prompts, config, folder=tmp_path)[1]
    assert [row["policy/optimizer_steps"] for row in rows] == [1, 1, 1]
    np.testing.assert_allclose([row["lr"] for row in rows], [1e-2, 1e-2 * 2 / 3, 1e-2 / 3], rtol=FLOAT32)
    state = training.make_optimizer(falling, 12)[0].init({"w": np.zeros(3, np.float32)})
    counts = [leaf for leaf in jax.tree.leaves(training.at_update(state, 8)) if np.ndim(leaf) == 0]
    assert sorted(map(int, counts)) == [0, 8]  # Adam's own count stays


def test_the_seconds_of_an_update_are_its_own(plain):
    """The last row is not read while nothing follows it: its time is a rollout's and its steps'."""
    for row in plain[1]:
        assert row["seconds"] > row["rollout/seconds"]


def raises(contents, completions):
    if any(content.startswith(" the") for content in contents):
        raise RuntimeError("no opinion")
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda contents, completions: [float("nan")] * len(completions), r"row \d+ is not finite: nan \(prompt "),
        (lambda contents, completions: [0.0], "8"),
        (raises, "no opinion"),
    ],
    ids=["nan", "length", "raises"],
)
def test_a_reward_that_fails_ends_the_run_and_loses_nothing(prompts, reward, message, tmp_path):
    whole, _ = fit(prompts, settings(max_steps=2), folder=tmp_path / "whole")
    calls = []

    def fails_later(contents, completions):
        calls.append(len(completions))
        return (likes_short_tokens if len(calls) == 1 else reward)(contents, completions)

    with pytest.raises(InputError, match=message) as caught:
        fit(prompts, settings(max_steps=2), reward=fails_later, folder=tmp_path / "run")
    assert "update 2" in str(caught.value)
    assert training.Checkpoints(tmp_path / "run" / "checkpoints").steps() == [1]
    again, _ = fit(prompts, settings(max_steps=2), folder=tmp_path / "run")
    assert bits(again.params) == bits(whole.params)


def test_an_overlapped_reward_that_fails_loses_nothing(prompts, tmp_path):
    config = settings(max_steps=3, overlap_rewards=True)
    whole, _ = fit(prompts, config, folder=tmp_path / "whole")
    calls = []

    def fails_later(contents, completions):
        calls.append(len(completions))
        if len(calls) == 2:
            raise RuntimeError("no opinion")
        return likes_short_tokens(contents, completions)

    with pytest.raises(InputError, match="no opinion"):
        fit(prompts, config, reward=fails_later, folder=tmp_path / "run")
    again, _ = fit(prompts, config, folder=tmp_path / "run")
    assert bits(again.params) == bits(whole.params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "--samples-per-prompt"),
        ({"minibatches": 3}, "--minibatches"),
        ({"kl_coefficient": 0.0, "kl_target": 3.0}, "--kl-coefficient"),
        ({"kl_horizon": 3.0}, "--kl-horizon"),
        ({"dual_clip": 0.5}, "--dual-clip"),
        ({"clip": 0.0}, "--clip"),
        ({"missing_eos_score": -1.0, "missing_eos_penalty": 1.0}, "--missing-eos"),
        ({"lora_rank": 2, "lora_dropout": 0.1}, "--lora-dropout"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_what_does_not_fit_is_refused(prompts):
    with pytest.raises(InputError, match="--batch-size: a rollout takes 40 prompts"):
        fit(prompts, settings(batch_size=80))
    with pytest.raises(InputError, match="--max-new-tokens"):
        fit(prompts, settings(max_new_tokens=64))
    config, tree = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(1))
    with pytest.raises(InputError, match="--overlap-rewards"):
        fit(prompts, settings(overlap_rewards=True), reward=models.RewardModel(config, tree))


def test_a_number_that_is_not_finite_stops_ppo_and_is_not_saved(prompts, tmp_path):
    """The first optimizer step throws the policy far out: the second meets numbers that are not finite."""
    huge = OptimizerConfig(optimizer="sgd", learning_rate=1e38)
    with pytest.raises(training.TrainingError) as caught:
        fit(prompts, settings(optimizer=huge, save_every=1, debug=True), folder=tmp_path)
    said = str(caught.value)
    assert said.startswith("step 1: ")
    assert "is not finite; records [" in said
    assert "; it began in " in said
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
