"""The sentiment study's ``paper`` preset in miniature: model, reviews and reward by path, every stage kept."""

import dataclasses
import functools
import json

import jax
import pytest

from experiments.imdb_sentiment import PRESETS, methods, run_study
from jaxalign import models, sharding
from tests.models.tiny import uncompiled_params
from tests.tiny_sentiment import save_classifier, tokenizer, write_reviews


def save_gpt2(folder):
    config = models.ModelConfig(
        family="gpt2", vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
        max_positions=64, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
        attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
    )  # fmt: skip
    tokens = tokenizer()
    tokens.backend_tokenizer.post_processor = None  # GPT-2's tokenizer puts nothing around a text
    models.save_pretrained(folder, config, uncompiled_params(config), tokens)
    return str(folder)


def study_of(folder):
    return dataclasses.replace(
        PRESETS["paper"],
        model=save_gpt2(folder / "gpt2"),
        reviews=write_reviews(folder / "reviews.jsonl", 100),
        reward=save_classifier(folder / "classifier"),
        prompts=8,
        held_out=4,
        max_new_tokens=8,
        sampling_batch=8,
        sft_steps=2,
        sft_batch=8,
        steps=2,
        prompts_per_step=8,
        learning_rate=1e-2,
        warmup_steps=1,
        measure_every=1,
        dpo_betas=(0.1,),
        preferred_ft_seeds=(0,),
        unlikelihood_alphas=(0.1,),
        rlhf=dataclasses.replace(
            PRESETS["paper"].rlhf,
            targets=(6.0,),
            reward_steps=2,
            reward_prompts_per_step=4,
            reward_learning_rate=1e-3,
            updates=2,
            episodes=8,
            ppo_epochs=1,
            learning_rate=1e-2,
        ),
    )


@pytest.fixture
def one_device(monkeypatch):
    """The study on one device, as it runs on a laptop; meshes have tests of their own."""
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("one_device")
def test_the_study_runs_once_and_is_kept(tmp_path, capsys):
    study, output = study_of(tmp_path), tmp_path / "out"
    first = run_study(study, output, name="paper")
    said = capsys.readouterr().out
    assert "kept from an earlier run" not in said

    report = (output / "report.md").read_text()
    methods_shown = ("DPO", "Unlikelihood", "PPO", "PPO-GT", "Best-of-N")
    for word in ("classifier", "character-judge", "full reviews", *methods_shown, "reward model", "frontier.png"):
        assert word in report, word
    assert "nan" not in report.split()
    assert "| sentences" not in report  # there are none, so no rater has an accuracy on them
    for name in ("frontier.png", "frontier.svg", "frontier.md", "frontier.csv"):
        assert (output / name).stat().st_size > 0, name
    kept = json.loads((output / "results.json").read_text())
    assert kept == json.loads(json.dumps(first))
    assert set(kept["largest KL of each run"]) == {
        "DPO beta 0.1", "Preferred-FT", "Unlikelihood alpha 0.1", "PPO KL 6", "PPO-GT KL 6",
    }  # fmt: skip
    assert all(abs(value) > 1e-3 for value in kept["largest KL of each run"].values())
    config, _ = models.load_pretrained(output / "model")
    assert config.family == "gpt2"

    before = snapshot(output / "stages")
    second = run_study(study, output, name="paper")
    said = capsys.readouterr().out
    # Judge, accuracies, start model, preferences, start measured, reward model, every run; the reward is not fitted.
    stages = 6 + len(methods(study))
    assert said.count("kept from an earlier run") == stages
    assert not [line for line in said.splitlines() if line.startswith("[") and "kept from" not in line]
    assert snapshot(output / "stages") == before
    assert second == first
