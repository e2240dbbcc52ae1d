"""Scores over model sizes in miniature: reviews and summaries, by path; slopes of invented scores."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _results, model_scaling
from experiments._hindsight import BASE, RLHF_ROW, Scale
from experiments._hindsight_rlhf import RLHFTraining
from experiments._model_sizes import count_parameters, model_of_size, slope_over_seeds
from experiments._scaling_result import Size, result_of
from experiments._scaling_tasks import ReviewsLadder, SummariesLadder
from experiments._stages import Stages
from experiments.model_scaling import PRESETS, main, run
from jaxalign import models, recipes
from jaxalign.errors import InputError
from tests.models.tiny import uncompiled_params
from tests.tiny_reviews import CONFIG, TRAINING, one_device, plain_tokenizer, study_in  # noqa: F401
from tests.tolerances import COVERAGE, FLOAT64

PACKAGED = importlib.util.find_spec("glassllm") is not None
ROWS = [BASE, "SFT", "CoH", RLHF_ROW]


@pytest.fixture
def sizes(tmp_path):
    """Two models of one family: one layer, and three."""
    found = []
    for layers in (1, 3):
        config = CONFIG.replace(layers=layers, stacks=(layers,))
        folder = tmp_path / f"layers-{layers}"
        models.save_pretrained(folder, config, uncompiled_params(config), plain_tokenizer())
        found.append(str(folder))
    return tuple(found)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def silent(done, total, note=""):
    return None


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("one_device")
def test_reviews_at_two_sizes(tmp_path, sizes, capsys):
    study = study_in(tmp_path)
    study = dataclasses.replace(study, rlhf=dataclasses.replace(study.rlhf, seeds_at=6.0))
    scaling = dataclasses.replace(
        PRESETS["gpu"], sizes=sizes, ladder=ReviewsLadder(study=study), training=TRAINING,
        scale=Scale(dtype="bfloat16", accumulation=2), seeds=(0,),
    )  # fmt: skip
    output = tmp_path / "out"
    first = run(scaling, output, "gpu")
    rows = first.tables[0].rows
    assert [row["parameters"] for row in rows[:2]] == [
        f"{count_parameters(models.load_pretrained(size)[1]):,}" for size in sizes
    ]
    assert list(rows[0]) == ["parameters", *ROWS]
    assert all(0 <= rows[1][method].value.estimate <= 1 for method in ROWS)  # the judge's probabilities
    assert [len(claim.by_seed) for claim in first.claims] == [1] * 6
    assert (output / "scaling.svg").stat().st_size > 0
    assert _results.load(output).seeds == 1

    before = snapshot(output / "stages")
    capsys.readouterr()
    assert run(scaling, output, "gpu") == first
    assert "running" not in capsys.readouterr().out
    assert snapshot(output / "stages") == before

    # Elsewhere, with the models elsewhere too, nothing is another stage.
    moved = tuple(str(shutil.copytree(size, tmp_path / "moved" / Path(size).name)) for size in sizes)
    shutil.copytree(output / "stages", tmp_path / "moved" / "out" / "stages")
    assert run(dataclasses.replace(scaling, sizes=moved), tmp_path / "moved" / "out", "gpu").claims == first.claims
    assert "running" not in capsys.readouterr().out


@pytest.mark.usefixtures("one_device")
def test_other_numbers_have_other_checkpoints(tmp_path, sizes, monkeypatch):
    class Reached(Exception):
        pass

    def reached(*arguments, directory, **options):
        raise Reached(directory)

    monkeypatch.setattr(model_scaling, "train", reached)
    scaling = dataclasses.replace(
        PRESETS["gpu"], sizes=sizes, ladder=ReviewsLadder(study=study_in(tmp_path)), training=TRAINING
    )
    directories = []
    weight = {"training": dataclasses.replace(TRAINING, pretraining_weight=3.0)}
    for changes, scale in (
        ({}, {}), (weight, {}), ({}, {"dtype": "bfloat16"}), ({}, {"accumulation": 2}), ({}, {"checkpoints": False})
    ):  # fmt: skip
        computed = Scale(**{"checkpoints": True} | scale)
        with pytest.raises(Reached) as found:
            run(dataclasses.replace(scaling, scale=computed, **changes), tmp_path / "out", "gpu")
        directories.append(found.value.args[0])
    plain, weighted, rounded, in_parts, without = directories
    assert without is None
    assert len({plain, weighted, rounded}) == 3
    assert in_parts == plain
    assert plain.parent == tmp_path / "out" / "runs"


@pytest.mark.usefixtures("one_device")
def test_summaries_as_the_paper_preset_has_them(tmp_path, sizes):
    comparisons = write_jsonl(tmp_path / "tldr.jsonl", [
        {
            "info": {"id": f"p{i}", "post": f"w{i} w{i + 1}", "title": f"w{i}", "subreddit": "r", "site": None,
                     "article": None},
            "summaries": [{"text": text, "policy": "a", "note": None} for text in (f" w{i}", " w9 w8")],
            "choice": i % 2, "worker": "w", "batch": "b", "split": "train", "extra": {},
        }
        for i in range(8)
    ])  # fmt: skip
    references = write_jsonl(tmp_path / "test.jsonl", [
        {"prompt": f"SUBREDDIT: r/r\nTITLE: w{i}\nPOST: w{i} w{i + 2}\nTL;DR:", "label": f" w{i} w1"}
        for i in range(5)
    ])  # fmt: skip
    text = write_jsonl(tmp_path / "pile.jsonl", [{"text": f"w{i} w{i + 1} w{i + 2} " * 6} for i in range(40)])
    ladder = SummariesLadder(
        task=dataclasses.replace(
            PRESETS["paper"].ladder.task, feedback=(comparisons,), held_out_dataset=references,
            held_out_split="train", held_out=5, max_new_tokens=6, pretraining=text,
        ),
        rlhf=RLHFTraining(
            reward_steps=2, reward_prompts_per_step=4, updates=1, episodes=8, ppo_epochs=1, minibatches=1,
        ),
        max_length=CONFIG.max_positions,
    )  # fmt: skip
    rung = ladder.rung(sizes[0], Stages(tmp_path / "stages"), 24)
    before = rung.measure(rung.task.start, None, seed=0, report=silent)
    policy = rung.rlhf.policy(seed=0, report=silent, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # no checkpoints are asked for
    assert list(before) == ["score"]
    assert len(rung.measure(policy, None, seed=0, report=silent)["score"]) == len(before["score"]) == 5
    assert "ROUGE-L" in rung.score
    moved = jax.tree.map(lambda new, old: np.abs(np.asarray(new) - np.asarray(old)).max(), policy, rung.task.start)
    assert max(jax.tree.leaves(moved)) > 0
    short = dataclasses.replace(ladder, max_length=8).rung(sizes[0], Stages(tmp_path / "stages"), 24)
    with pytest.raises(InputError, match=r"max_length 8: comparisons of 0 prompts"):
        short.rlhf.policy(seed=0, report=silent, directory=tmp_path / "run")


def test_a_slope_is_that_of_the_line():
    sizes = [100, 1000, 10_000]
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 50))
    lines = np.log(sizes)[:, None, None] * np.array([0.5, 0.7])[:, None] + noise
    found, by_seed = slope_over_seeds(sizes, lines)
    np.testing.assert_allclose(by_seed, [0.5, 0.7], rtol=FLOAT64)
    assert found.estimate == pytest.approx(0.6, rel=FLOAT64)
    assert found.low < 0.5
    assert found.high > 0.7
    with pytest.raises(InputError, match="two sizes"):
        slope_over_seeds([100], lines[:1])


def test_the_interval_of_a_slope_covers():
    """Three seeds of every size differ as much as items do, and nothing rises."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        scores = (
            random.normal(0, 0.5, 128) + random.normal(0, 0.2, (3, 3, 1)) + random.normal(0, 0.3, (3, 3, 128))
        )  # fmt: skip
        found, _ = slope_over_seeds([100, 1000, 10_000], scores)
        covered += found.low <= 0 <= found.high
    assert covered / 1000 >= 0.95 - COVERAGE


def test_claims_follow_the_scores(tmp_path):
    noise = np.random.default_rng(1).normal(0, 0.02, 100)

    def rows(*means):
        return [{"score": (mean + noise).tolist()} for mean in means]

    sizes = [
        Size(name=str(count), parameters=count, score="points", rows={
            BASE: rows(0.2), "SFT": rows(0.4, 0.4), "CoH": rows(0.3 + gain, 0.302 + gain), RLHF_ROW: rows(0.9, 0.9),
        })
        for count, gain in ((1000, 0.0), (10_000, 0.2))
    ]  # fmt: skip
    found = result_of(list(reversed(sizes)), tmp_path, preset="mini", setting="", seconds=1.0)
    assert [row["parameters"] for row in found.tables[0].rows] == ["1,000", "10,000", "slope"]
    assert [claim.verdict for claim in found.claims] == ["holds", "holds", "reversed", "holds", "holds", "holds"]


@pytest.mark.skipif(not PACKAGED, reason="the packaged tokenizer is not installed")
def test_an_untrained_model_is_kept(tmp_path):
    folder = model_of_size("32x2", Stages(tmp_path), 0)
    config, params = models.load_pretrained(folder)
    assert (config.width, config.layers, config.heads, config.kv_heads) == (32, 2, 2, 1)
    assert count_parameters(params) == 1024 * 32 + 2 * (2 * 32 + 3 * 32 * 32 + 3 * 32 * 85) + 32
    tokens = recipes.load_tokenizer(folder)
    assert tokens.decode(tokens.encode("A good film.\n\u201cYes\u201d")) == "A good film.\n\u201cYes\u201d"
    assert model_of_size("32x2", Stages(tmp_path), 0) == folder
    assert model_of_size("a/model", Stages(tmp_path), 0) == "a/model"
    other, _ = models.load_pretrained(model_of_size("48x1", Stages(tmp_path), 0))
    assert other.kv_heads == 3  # an odd number of heads has no half
    with pytest.raises(InputError, match="width 40"):
        model_of_size("40x2", Stages(tmp_path), 0)
    assert jax.tree.structure(params) == jax.tree.structure(models.init(config, jax.random.key(1)))


def test_flags(capsys):
    for flags, words in (
        (["--sizes", "32x2"], "--sizes: name at least two"), (["--methods", "SFT"], "the claims are of CoH"),
        (["--methods", "CoH", "SFT", "X"], "there is no method 'X'"), (["--seeds", "1", "1"], "--seeds"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "paper", "--help"])
    assert stop.value.code == 0
    assert "--ladder.rlhf.updates" in capsys.readouterr().out
