"""The sentiment study's ``paper`` preset in miniature: model, reviews and reward by path, every stage kept."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _results, _sentiment_runs
from experiments._hindsight import Scale
from experiments._sentiment import OTHER_PAIRS, UNWEIGHTED, Ablations, Sweep
from experiments._sentiment_runs import methods, seeded, stage_count
from experiments._sentiment_start import first_batch
from experiments.imdb_sentiment import PRESETS, main, run
from jaxalign import models, sharding
from jaxalign.cli._evaluate import EvaluateConfig
from jaxalign.cli._evaluate import run as evaluate
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
        dpo_seeds=(0, 1),
        dpo_seeds_at=0.1,
        preferred_ft_seeds=(0,),
        unlikelihood_alphas=(0.1,),
        rlhf=dataclasses.replace(
            PRESETS["paper"].rlhf,
            targets=(6.0,),
            seeds=(0, 1),
            true_seeds=(0, 1),
            seeds_at=6.0,
            reward_steps=2,
            reward_prompts_per_step=4,
            reward_learning_rate=1e-3,
            updates=2,
            episodes=8,
            ppo_epochs=1,
            learning_rate=1e-2,
            points=2,
            scale=Scale(accumulation=2, remat="full"),
        ),
        sweep=Sweep(temperatures=(0.0, 1.0)),
        ablations=Ablations(unweighted_seeds=(0, 1), other_model=save_gpt2(folder / "other-gpt2"), other_seeds=(0, 1)),
    )


@pytest.fixture
def one_device(monkeypatch):
    """The study on one device, as it runs on a laptop; meshes have tests of their own."""
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("one_device")
def test_the_study_runs_once_and_is_kept(tmp_path, capsys, monkeypatch):
    study, output = study_of(tmp_path), tmp_path / "out"
    runs = methods(study)

    class Killed(Exception):
        pass

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patch:  # dies in its PPO runs, when a part of the stages is done
        patch.setattr(_sentiment_runs, "train_ppo", killed)
        with pytest.raises(Killed):
            run(study, output, "paper")
    said = capsys.readouterr().out
    assert "kept from an earlier run" not in said
    before = snapshot(output / "stages")
    assert before

    first = run(study, output, "paper")
    said = capsys.readouterr().out
    assert {path: time for path, time in snapshot(output / "stages").items() if path in before} == before
    assert said.count("kept from an earlier run") == sum(path.name == "stage.json" for path in before)

    report = (output / "report.md").read_text()
    methods_shown = ("DPO", "Unlikelihood", "PPO", "PPO-GT", "Best-of-N", UNWEIGHTED, OTHER_PAIRS)
    for word in ("classifier", "character-judge", "full reviews", *methods_shown, "reward model", "frontier.png"):
        assert word in report, word
    assert "nan" not in report.split()
    assert "| sentences" not in report  # there are none, so no rater has an accuracy on them
    kept = json.loads((output / "results.json").read_text())
    assert set(kept["largest KL of each run"]) == {method.label for method in runs} == {
        "DPO beta 0.1", "DPO beta 0.1, seed 1", "Preferred-FT", "Unlikelihood alpha 0.1", "PPO KL 6",
        "PPO KL 6, seed 1", "PPO-GT KL 6", "PPO-GT KL 6, seed 1",
        f"{UNWEIGHTED} beta 0.1", f"{UNWEIGHTED} beta 0.1, seed 1",
        f"{OTHER_PAIRS} beta 0.1", f"{OTHER_PAIRS} beta 0.1, seed 1",
    }  # fmt: skip
    assert all(abs(value) > 1e-3 for value in kept["largest KL of each run"].values())
    config, _ = models.load_pretrained(output / "model")
    assert config.family == "gpt2"

    before = snapshot(output / "stages")
    second = run(study, output, "paper")
    said = capsys.readouterr().out
    # Judge, accuracies, start model, preferences, start measured, reward model, other pairs, every run, four sweeps;
    # the reward is not fitted.
    stages = 7 + len(runs) + 4
    assert said.count("kept from an earlier run") == stages == stage_count(study, runs)
    assert not [line for line in said.splitlines() if line.startswith("[") and "kept from" not in line]
    assert snapshot(output / "stages") == before
    assert second == first

    check_result(_results.load(output), study, runs, output)


def check_result(result, study, runs, output):
    """What the report of all experiments reads of it."""
    assert (result.preset, result.seeds) == ("paper", 2)
    assert result.seconds > 0
    claims = {claim.claim: claim for claim in result.claims}
    assert len(claims) == 9  # reward, five areas, two of the weight, other pairs
    few = {claim.claim.rpartition(" ")[2] for claim in claims.values() if "has one training seed" in claim.undecidable}
    assert few == {"Preferred-FT", "Unlikelihood"}
    assert all(len(claim.by_seed) == 2 for claim in claims.values())
    for claim in claims.values():
        assert np.isclose(claim.found.estimate, np.mean(claim.by_seed), atol=1e-9), claim.claim
    assert {Path(figure.file).stem for figure in result.figures} == {
        "frontier", "judge", "temperature", "pairwise", "ablation",
    }  # fmt: skip
    tables = {table.caption.split(":")[0]: table.rows for table in result.tables}
    points = tables["Every measurement of every run of the figure, and of its further seeds"]
    assert all("[" in row["by k3"] for row in points if row["KL is"] == "measured")
    # The start of every setting, two points of every run, Best-of-2 to 4.
    figure = [method for method in runs if method.name not in (UNWEIGHTED, OTHER_PAIRS)]
    assert len(points) == sum(3 - method.repeat for method in figure) + 3
    areas = tables["Area under each method's frontier"]
    assert [row["method"] for row in areas] == ["DPO", "Preferred-FT", "Unlikelihood", "PPO", "PPO-GT"]
    policies = 7  # five methods, Best-of-4, the start model
    verdicts = [json.loads(line) for line in (output / "verdicts" / "pairwise.jsonl").read_text().splitlines()]
    assert len(verdicts) == study.held_out * policies * (policies - 1) // 2
    evaluate(EvaluateConfig(
        output_dir=output / "page", run=output,
        verdicts=tuple(str(path) for path in sorted((output / "verdicts").iterdir())),
    ))  # fmt: skip
    page = (output / "page" / "report.html").read_text()
    assert "start model" in page
    assert "sampling temperature" in page


@pytest.mark.usefixtures("one_device")
def test_the_nearest_preset_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "papr"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "imdb_sentiment: --preset: there is no 'papr'; did you mean 'paper'?\n"


def test_a_dry_run_shows_the_first_pairs_and_writes_nothing(tmp_path, capsys):
    study = study_of(tmp_path)
    found = first_batch(dataclasses.replace(study, prompts_per_step=3))
    assert 1 <= len(found.examples) <= 3
    assert all(len(example.pairs) for example in found.examples)
    assert "3 prefixes with 4 samples each" in found.note
    assert "before the fine-tuning" in found.note
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "mini", "--dry-run", "--reviews", str(tmp_path / "nothing.jsonl")])
    assert stop.value.code == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["mini", "gpu", "paper"])
def test_a_preset_has_the_papers_runs(name):
    runs = methods(PRESETS[name])
    shown = [method for method in runs if not method.repeat and method.name not in (UNWEIGHTED, OTHER_PAIRS)]
    count = {label: sum(method.name == label for method in shown) for label in dict.fromkeys(m.name for m in shown)}
    assert count["DPO"] == count["PPO"] == count["PPO-GT"] == count["Unlikelihood"] == 4
    assert count["Preferred-FT"] >= 3
    for label in ("DPO", "PPO", "PPO-GT", "Unlikelihood", UNWEIGHTED, OTHER_PAIRS):
        assert len(seeded(runs, label)) == 3
    assert len({method.label for method in runs}) == len(runs)
