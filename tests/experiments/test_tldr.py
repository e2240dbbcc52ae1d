"""The TL;DR experiment in miniature: the paper preset's rows by path, an endpoint as judge, killed and gone on with."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from benchmarks._judge_server import Act, JudgeServer
from experiments import _results, _tldr_training, tldr_summarization
from experiments._content_words import ContentWords, content_word_judges
from experiments._results import verdict
from experiments._stages import Stages
from experiments._tldr import Judging, Run, Study, load_posts
from experiments._tldr_report import _best, _spread, over_seeds
from experiments._tldr_runs import run_all
from jaxalign import models, sharding
from jaxalign.errors import InputError
from jaxalign.evaluation import Interval, read_judged
from jaxalign.evaluation.judges import Item, compare
from tests.models.tiny import uncompiled_params
from tests.tiny_sentiment import tokenizer
from tests.tolerances import COVERAGE

CONFIG = models.ModelConfig(
    family="gpt2", vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
    max_positions=96, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
    attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip


@pytest.fixture
def one_device(monkeypatch):
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def references(path, count, start=0):
    """Rows of openai_summarize_tldr's schema."""
    return write_jsonl(path, [
        {"prompt": f"SUBREDDIT: r/r\nTITLE: w{i}\nPOST: w{i} w{i + 2}\nTL;DR:", "label": f" w{i} w1"}
        for i in range(start, start + count)
    ])  # fmt: skip


def comparisons(path, count):
    """Rows of summarize_from_feedback's schema."""
    return write_jsonl(path, [
        {
            "info": {"id": f"p{i}", "post": f"w{i} w{i + 1}", "title": f"w{i}", "subreddit": "r", "site": None,
                     "article": None},
            "summaries": [{"text": text, "policy": "a", "note": None} for text in (f" w{i}", " w9 w8")],
            "choice": i % 2, "worker": "w", "batch": "b", "split": "train", "extra": {},
        }
        for i in range(count)
    ])  # fmt: skip


def paper_study(folder, url):
    tokens = tokenizer()
    tokens.backend_tokenizer.post_processor = None  # GPT-2's tokenizer puts nothing around a text
    models.save_pretrained(folder / "model", CONFIG, uncompiled_params(CONFIG), tokens)
    preset = tldr_summarization.PRESETS["paper"]
    short = {"steps": 2, "batch": 4, "learning_rate": 1e-2, "warmup_steps": 1}
    runs = ("sft", "preferred_ft", "dpo", "reward")
    return dataclasses.replace(
        preset,
        model=str(folder / "model"),
        posts=references(folder / "train.jsonl", 8),
        held_out_source=references(folder / "test.jsonl", 4, start=20),
        comparisons=comparisons(folder / "compared.jsonl", 9),
        sft_posts=8,
        held_out=4,
        max_length=96,
        max_new_tokens=6,
        sampling_batch=8,
        temperatures=(0.0, 1.0),
        reading=Run(steps=1, batch=4),
        reading_words=(2, 3),
        best_of=(1, 2, 3),
        seeds=(0, 1),
        **{name: dataclasses.replace(getattr(preset, name), **short) for name in runs},
        ppo=dataclasses.replace(preset.ppo, updates=1, episodes=8, learning_rate=1e-2),
        judging=Judging(model="judge", base_url=url, api_key_variable=None, first_pause=0.01),
        scale=dataclasses.replace(preset.scale, accumulation=2),
    )


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("one_device")
def test_the_paper_preset_killed_and_gone_on_with(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with JudgeServer(lambda *_: Act()) as server:
        study = paper_study(tmp_path, server.url)
        with monkeypatch.context() as patch:
            patch.setattr(_tldr_training, "train_ppo", killed)
            with pytest.raises(KeyboardInterrupt):
                tldr_summarization.run(study, output, "paper")
        finished = files(output / "stages")
        assert not server.asked
        tldr_summarization.run(study, output, "paper")
        first = _results.load(output)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        asked, everything = sum(server.asked.values()), files(output / "stages")
        tldr_summarization.run(study, output, "paper")
        assert sum(server.asked.values()) == asked
        assert set(server.asked.values()) == {1}
    assert files(output / "stages") == everything
    assert _results.load(output) == first  # the time it took as well
    seals = [json.loads(path.read_text()) for path in output.glob("stages/*/stage.json")]
    assert first.seconds == pytest.approx(sum(seal["seconds"] for seal in seals))
    assert sum(seal["stage"] == "verdicts" for seal in seals) == 1

    assert first.seeds == 2
    assert [len(claim.by_seed) for claim in first.claims] == [2] * 6
    # Another beta is another run, in the same folder and with the checkpoints of the first still there.
    run_all(dataclasses.replace(study, dpo_beta=50.0), Stages(output / "stages", console=Console(quiet=True)), output)
    runs = [path.read_text() for path in (output / "runs").glob("dpo-seed-0*/metrics.jsonl")]
    assert len(set(runs)) == 2

    drawn = {row["method"] for row in first.tables[0].rows}
    assert drawn == {"Base", "SFT", "Preferred-FT", "PPO", "DPO", "Best-of-3"}
    assert [(row["judge"], row["N"]) for row in first.tables[2].rows] == [(j, n) for j in "SC" for n in "123"]
    rows = json_lines(output / "summaries.jsonl")
    assert len(rows) == (3 + 2 * 2 + 2) * 2 * 4  # methods with their seeds and Best-of-2 and -3, temperatures, posts
    judged = read_judged(json_lines(output / "verdicts.jsonl"))
    assert len(judged) == 2 * len(rows)
    greedy = [one for one in judged if one.temperature == 0 and one.judge == "S"]
    texts = {
        name: [one.ours for one in greedy if one.method == name] for name in ("SFT", "DPO", "Best-of-2", "Best-of-3")
    }
    assert texts["SFT"] == texts["Best-of-2"] == texts["Best-of-3"]  # at temperature 0 all samples are one
    assert texts["DPO"][:4] != texts["SFT"]


def test_a_judge_that_is_not_to_be_had_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    study = dataclasses.replace(tldr_summarization.PRESETS["mini"], judging=Judging(model="gpt-4o"))
    with pytest.raises(InputError, match="OPENAI_API_KEY: not set"):
        tldr_summarization.run(study, tmp_path / "out", "mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-this-test")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match="openai is not installed"):
        tldr_summarization.run(study, tmp_path / "out", "mini")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(InputError, match="--best-of"):
        Study(best_of=(4, 1))
    with pytest.raises(InputError, match="--temperatures"):
        Study(temperatures=(0.5, 1.0))
    with pytest.raises(InputError, match="--seeds"):
        Study(seeds=(1, 1))
    path = references(tmp_path / "few.jsonl", 3)
    with pytest.raises(InputError, match=r"--sft-posts: 4, but .*few.jsonl has 3 rows"):
        load_posts(Study(posts=path, held_out_source=path, sft_posts=4))
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"prompt": "w1 TL;DR:"}])
    with pytest.raises(InputError, match=r"bad.jsonl: row 1: needs the texts 'prompt' and 'label'"):
        load_posts(Study(posts=bad, held_out_source=path, sft_posts=1))


DOCUMENTS = [*(f"the cat{i}" for i in range(19)), "the storm hit paris", "the storm"]


def test_content_words_by_hand():
    words = ContentWords.of(DOCUMENTS)
    rare, less = math.log(22 / 2), math.log(22 / 3)  # hit and paris are in one of 21 documents, storm in two
    document = "the storm hit Paris"
    assert words.coverage(document, "A storm, the storm!") == pytest.approx(less / (less + 2 * rare))
    recall, precision = (less + rare) / (less + 2 * rare), 2 / 4
    expected = 2 * recall * precision / (recall + precision)
    assert words.precise_coverage(document, "the storm in Paris") == pytest.approx(expected)
    assert words.coverage(document, "the") == words.precise_coverage(document, "") == 0


def test_coverage_does_not_depend_on_the_order_of_words():
    """Sets have another order in every process, and sums of floats another last digit in every order."""
    script = (
        "from experiments._content_words import ContentWords\n"
        "words = ContentWords.of([' '.join(f'w{index}x' for index in range(0, 400, step)) for step in range(1, 60)])\n"
        "document = ' '.join(f'w{index}x' for index in range(0, 400, 7))\n"
        "print(repr([words.coverage(document, document[:end]) for end in range(10, len(document))]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env=environment | {"PYTHONHASHSEED": seed}, check=True, capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


def test_content_word_judges_disagree_about_what_is_not_in_the_document(tmp_path):
    words = ContentWords.of(DOCUMENTS)
    words.save(tmp_path / "words.json")
    assert ContentWords.load(tmp_path / "words.json") == words
    padded = "storm hit and much else that nobody had asked about at all"
    items = [
        Item(prompt="the storm hit paris", ours=padded, theirs="storm"),
        Item(prompt="the storm hit paris", ours="the", theirs="nothing"),
    ]
    outcomes = {
        name: [one.outcome for one in compare(judge, items, seed=0)]
        for name, judge in content_word_judges(words).items()
    }
    assert outcomes == {"S": ["win", "tie"], "C": ["lose", "tie"]}
    (tmp_path / "words.json").write_text("[]")
    with pytest.raises(InputError, match="no counts of words"):
        ContentWords.load(tmp_path / "words.json")


def test_statistics_of_curves_over_seeds():
    def best(curves):
        return curves.max(axis=-1)

    own = np.array([[[1, 1, 0, 1], [1, 0, 0, 0]], [[0, 0, 0, 0], [1, 1, 1, np.nan]]], float)
    other = np.zeros((1, 2, 4))
    found, by_seed = over_seeds(best, own, other)
    assert by_seed == [75.0, 100.0]
    assert found.estimate == pytest.approx(87.5)  # each seed's own best, not the best of their mean
    assert found.low <= found.estimate <= found.high
    assert over_seeds(best, other, other)[0] == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("of_curve", [_best, _spread])
def test_statistics_of_curves_do_not_favour_whoever_has_fewer_seeds(of_curve):
    """Three seeds against one without a difference: no bias, and seldom a verdict."""
    random = np.random.default_rng(0)
    estimates, covered, decided = [], 0, 0
    for _ in range(1000):
        easy = random.random(64) < 0.5  # posts that are easy for all
        own, other = (np.where(random.random((seeds, 4, 64)) < 0.3, easy, random.random((seeds, 4, 64)) < 0.5)
                      for seeds in (3, 1))  # fmt: skip
        found, by_seed = over_seeds(of_curve, own.astype(float), other.astype(float), resamples=100)
        assert found.estimate == pytest.approx(np.mean(by_seed))
        estimates.append(found.estimate)
        covered += found.low <= 0 <= found.high
        decided += verdict(found, by_seed) != "undecided"
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / np.sqrt(1000)  # standard errors
    assert covered / 1000 >= 0.95 - COVERAGE
    assert decided / 1000 <= 0.05 + COVERAGE


def test_dry_run(capsys):
    tldr_summarization.main(["--preset", "mini", "--dry-run"])
    said = capsys.readouterr().out
    for words in ("preset mini", "TL;DR:", "demonstrations"):
        assert words in said
