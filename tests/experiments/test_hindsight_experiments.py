"""The Chain of Hindsight experiments in miniature: models, data and feedback by path, every stage kept."""

import dataclasses
import functools
import itertools
import json
import re

import jax
import numpy as np
import pytest

from experiments import _results, coh_dialogue, coh_sentiment, coh_summarization
from experiments._hindsight import BASE, METHODS, RLHF_ROW, Scale, Training
from experiments._hindsight_pairwise import judged_pairs
from experiments._hindsight_report import write
from experiments._hindsight_reviews import LEAD
from experiments._hindsight_rlhf import RLHFTraining, _last_groups
from experiments._hindsight_rlhf import comparisons as comparisons_of
from experiments._hindsight_study import Table
from experiments._hindsight_tasks import Axis, Published
from experiments._pseudo_dialogue import pseudo_dialogue
from experiments._sentiment_rlhf import RLHF
from jaxalign import data, evaluation, models, sharding
from jaxalign.errors import InputError
from tests.experiments.test_paper_preset import study_of
from tests.models.tiny import uncompiled_params
from tests.tiny_sentiment import tokenizer

TINY = Training(
    steps=1, outputs=4, learning_rate=1e-2, warmup_steps=0, max_length=200, pretraining_batch_size=2,
    pretraining_length=24,
)  # fmt: skip
SCALE = Scale(dtype="bfloat16", accumulation=2, remat="full", checkpoints=True)
TINY_RLHF = RLHFTraining(
    target_kl=3.0, reward_steps=1, reward_prompts_per_step=4, updates=1, episodes=8, ppo_epochs=1, minibatches=1,
    learning_rate=1e-2, scale=SCALE,
)  # fmt: skip
CONFIG = models.ModelConfig(
    family="gpt2", vocab_size=320, width=16, layers=2, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
    max_positions=320, norm="layer", position="learned", activation="gelu_tanh", gated_mlp=False,
    attention_bias=True, attention_output_bias=True, mlp_bias=True, tied_embeddings=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    for name in ("make_mesh", "parse_mesh"):
        monkeypatch.setattr(sharding, name, functools.partial(getattr(sharding, name), devices=jax.devices()[:1]))


@pytest.fixture
def model(tmp_path):
    tokens = tokenizer()
    tokens.backend_tokenizer.post_processor = None
    models.save_pretrained(tmp_path / "model", CONFIG, uncompiled_params(CONFIG), tokens)
    return str(tmp_path / "model")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def text(tmp_path):
    return write_jsonl(tmp_path / "pile.jsonl", [{"text": f"w{i} w{i + 1} w{i + 2} " * 6} for i in range(40)])


def hh(path, count):
    return write_jsonl(path, [
        {"chosen": f"\n\nHuman: w{i}?\n\nAssistant: w{i} w1", "rejected": f"\n\nHuman: w{i}?\n\nAssistant: w2 w3"}
        for i in range(count)
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


def references(path, count):
    """Rows of openai_summarize_tldr's schema."""
    return write_jsonl(path, [
        {"prompt": f"SUBREDDIT: r/r\nTITLE: w{i}\nPOST: w{i} w{i + 2}\nTL;DR:", "label": f" w{i} w1"}
        for i in range(count)
    ])  # fmt: skip


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_kept(run, output, capsys):
    """A second run computes nothing and says the same."""
    before = snapshot(output / "stages")
    capsys.readouterr()
    again = run()
    said = capsys.readouterr().out
    stages = [line for line in said.splitlines() if line.startswith("[")]
    assert stages
    assert all("kept from an earlier run" in line or "running" not in line for line in stages)
    assert snapshot(output / "stages") == before
    return again


def test_dialogues_as_the_paper_preset_has_them(tmp_path, model, text, capsys):
    table = dataclasses.replace(
        coh_dialogue.PRESETS["paper"],
        methods=("SFT-U", "CoH"),
        seeds=(0, 1),
        rlhf_seeds=(0,),
        training=TINY,
        scale=SCALE,
        rlhf=TINY_RLHF,
        task=coh_dialogue.Dialogue(
            model=model, feedback=(hh(tmp_path / "hh.jsonl", 12), comparisons(tmp_path / "tldr.jsonl", 6)),
            held_out_dataset=hh(tmp_path / "test.jsonl", 9), held_out_split="train", held_out=8, pretraining=text,
        ),
    )  # fmt: skip
    output = tmp_path / "out"
    found = coh_dialogue.run(table, output, "paper")
    assert list(found["rows"]) == [BASE, "SFT-U", "CoH", RLHF_ROW]
    assert all(0 <= row["score"] <= 100 for row in found["rows"].values())
    assert [row["CoH minus"] for row in found["differences"]] == [BASE, "SFT-U", RLHF_ROW]
    assert found["differences"][-1]["the order"] == "undecided"
    assert [row["method"] for row in found["control"]] == ["CoH"]
    report = (output / "report.md").read_text()
    for words in (
        "2 training seeds",
        "Does the paper's order hold?",
        "Do the words steer?",
        "8 held-out items",
        TINY_RLHF.in_words(3.0),
    ):
        assert words in report
    assert "nan" not in report
    prompts = data.load_feedback_prompts(output / "model", tokenizer())
    assert prompts.tokens([{"role": "user", "content": "w1"}])
    assert assert_kept(lambda: coh_dialogue.run(table, output, "paper"), output, capsys) == found

    result = _results.load(output)
    *order, steers = result.claims
    assert [claim.claim for claim in order] == [f"CoH is above {row}" for row in (BASE, "SFT-U", RLHF_ROW)]
    assert (steers.claim, steers.source) == ("The words steer CoH", "")
    assert steers.found.estimate == pytest.approx(np.mean(steers.by_seed))
    assert "after good words" in steers.why
    assert all(len(claim.by_seed) == 2 for claim in result.claims)
    assert [claim.undecidable for claim in order] == ["", "", f"one training seed of {RLHF_ROW}"]
    assert [value.paper for value in result.values] == ["43.8", "42.3", "81.2", "68.8"]
    assert [value.seeds for value in result.values] == [1, 2, 2, 1]
    pairwise = result.tables[1].rows
    axes = ["like the preferred", "unlike the rejected", "average"]
    assert [(row["against"], row["axis"]) for row in pairwise] == [
        (method, axis) for method in (BASE, "SFT-U", RLHF_ROW) for axis in axes
    ]
    verdicts = data.load_records(output / "verdicts.jsonl")
    assert len(evaluation.read_judged(verdicts)) == 3 * 2 * 2 * 8  # methods, seeds, axes, dialogues
    pairs, _ = evaluation.read_pairs(output / "pairs.jsonl", ours="CoH", keep_equal=True)
    assert len(pairs) == 3 * 8  # what judges and people are asked

    (rlhf,) = (output / "runs").glob("rlhf-seed-0-*")  # where a run that is killed goes on
    assert {path.name for path in rlhf.iterdir()} == {"reward-model", "ppo"}
    others = dataclasses.replace(table, rlhf_seeds=(), rlhf=RLHFTraining())
    found = assert_kept(lambda: coh_dialogue.run(others, output, "paper"), output, capsys)
    assert list(found["rows"]) == [BASE, "SFT-U", "CoH"]


def test_other_numbers_in_the_same_folder_are_another_model(tmp_path, model, text):
    table = dataclasses.replace(
        coh_dialogue.PRESETS["paper"], methods=("CoH",), seeds=(0,), rlhf_seeds=(), training=TINY, scale=SCALE,
        task=coh_dialogue.Dialogue(
            model=model, feedback=(hh(tmp_path / "hh.jsonl", 12),), held_out=4, spoken=1, max_new_tokens=2,
            pretraining=text,
        ),
    )  # fmt: skip
    output = tmp_path / "out"

    def trained(table):
        coh_dialogue.run(table, output, "paper")
        return jax.tree.leaves(models.load_pretrained(output / "model")[1])

    first = trained(table)
    other = trained(dataclasses.replace(table, training=dataclasses.replace(TINY, pretraining_weight=30.0)))
    assert any((np.asarray(old) != np.asarray(new)).any() for old, new in zip(first, other, strict=True))


@pytest.mark.parametrize(("scale", "inputs"), [(Scale(accumulation=2), {}), (SCALE, {"dtype": "bfloat16"})])
def test_what_a_stage_knows_of_the_scale(scale, inputs):
    assert scale.inputs == inputs  # those of runs in float32 stay what they were


def test_summaries_as_the_paper_preset_has_them(tmp_path, model, text, capsys):
    table = dataclasses.replace(
        coh_summarization.PRESETS["paper"],
        methods=("C-SFT", "CoH"),
        training=TINY,
        scale=SCALE,
        rlhf=dataclasses.replace(TINY_RLHF, scale=Scale()),
        task=coh_summarization.Summaries(
            model=model, feedback=(comparisons(tmp_path / "tldr.jsonl", 6), hh(tmp_path / "hh.jsonl", 4)),
            held_out_dataset=references(tmp_path / "test.jsonl", 6), held_out_split="train", held_out=5,
            max_new_tokens=6, pretraining=text,
        ),
    )  # fmt: skip
    output = tmp_path / "out"
    found = coh_summarization.run(table, output, "paper")
    assert list(found["rows"]) == [BASE, "C-SFT", "CoH", RLHF_ROW]
    assert {"score", "rouge1 x 100", "rouge2 x 100", "score, bad words", "score, bettered", "copied"} <= set(
        found["rows"]["CoH"]
    )
    assert [row["method"] for row in found["copied"]] == ["C-SFT", "CoH"]
    assert assert_kept(lambda: coh_summarization.run(table, output, "paper"), output, capsys) == found


def test_reviews_with_every_row(tmp_path, model, capsys):
    study = dataclasses.replace(
        study_of(tmp_path), model=model, lead=LEAD, samples_per_prompt=3, sft_steps=0, frozen_layers=1,
    )  # fmt: skip
    table = coh_sentiment.SentimentTable(seeds=(0,), rlhf_seeds=(0, 1), training=TINY, study=study)
    output = tmp_path / "out"
    found = coh_sentiment.run(table, output, "mini")
    assert list(found["rows"]) == [BASE, *METHODS, RLHF_ROW]
    assert [row["CoH minus"] for row in found["differences"]] == [name for name in found["rows"] if name != "CoH"]
    for row in found["rows"].values():
        assert all(np.isfinite(value) for value in row.values())
    for name in ("report.md", "table.csv", "table.png", "results.json"):
        assert (output / name).stat().st_size > 0
    assert assert_kept(lambda: coh_sentiment.run(table, output, "mini"), output, capsys) == found
    assert {claim.undecidable for claim in _results.load(output).claims if RLHF_ROW in claim.claim} == {
        "one training seed of CoH"
    }
    with pytest.raises(InputError, match="--rlhf-seeds: without --study"):
        dataclasses.replace(table, study=dataclasses.replace(study, rlhf=RLHF()))


def test_what_rlhf_reads_of_a_tasks_records(tmp_path, model, text):
    """A prompt's comparisons stay together; prompts are those that an answer follows."""
    spoken = "\n\nHuman: w0?\n\nAssistant:"
    rows = [
        *({"chosen": f"{spoken} w{i} w4", "rejected": f"{spoken} w3"} for i in range(3)),
        {"chosen": "\n\nHuman: w1?\n\nAssistant: w2", "rejected": "\n\nHuman: w1?\n\nAssistant: w4" + " w5" * 200},
        {
            side: f"\n\nHuman: w6?\n\nAssistant: w1\n\nHuman: {said}?\n\nAssistant: w2"
            for side, said in (("chosen", "w2"), ("rejected", "w3"))
        },
        {"chosen": "\n\nHuman: w8?\n\nAssistant: w2", "rejected": "\n\nHuman: w8?\n\nAssistant: w3"},
    ]
    settings = coh_dialogue.Dialogue(
        model=model, feedback=(write_jsonl(tmp_path / "hh.jsonl", rows),),
        held_out_dataset=hh(tmp_path / "test.jsonl", 4), held_out_split="train", max_new_tokens=4, pretraining=text,
    )  # fmt: skip
    task = coh_dialogue.DialogueTask(settings, 24)
    orders = set()
    for seed in range(8):
        groups, prompts = comparisons_of(task, 150, seed)
        examples = [example for group in groups for example in group]
        first = [re.findall(r"w\d", task.tokenizer.decode(example.tokens))[0] for example in examples]
        assert sorted(first) == ["w0", "w0", "w0", "w6", "w8"]
        assert first[first.index("w0") :][:3] == ["w0"] * 3
        for share, least in ((0.01, 1), (0.3, 2), (0.99, 2)):  # whole prompts, never all of them
            held = _last_groups(groups, share)
            assert held in itertools.accumulate(len(group) for group in groups[:0:-1])
            assert least <= held < len(examples)
        asked = [re.findall(r"w\d", prompt.opening) for prompt in prompts]
        assert sorted(asked) == [["w0"], ["w1"], ["w8"]]
        orders.add(tuple(prompt.ids for prompt in prompts))
    assert len(orders) > 1
    with pytest.raises(InputError, match="max_length 8: comparisons of 0 prompts"):
        comparisons_of(task, 8, 0)


def test_a_pseudo_dialogue_says_every_turn_of_the_assistant_anew():
    before = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant:"
    found = pseudo_dialogue({"chosen": f"{before} good", "rejected": f"{before} bad"})
    assert [[turn["content"] for turn in history] for history in found.histories] == [["a?"], ["a?", "b", "c?"]]
    assert (found.preferred, found.other) == ("good", "bad")
    assert found.item == "user: a?\n\nassistant: b\n\nuser: c?"


def test_outputs_are_compared_axis_by_axis_and_seed_by_seed():
    def row(*scores):
        return {"score": [0.0] * 3, "output": list("xyz"), "axis: points": list(scores)}

    task = _Task()
    task.axes, task.items = (Axis("points", "a scorer", 0.5),), ("p", "q", "r")
    results = {BASE: [row(1, 1, 1)], "CoH": [row(2, 1.5, 0), row(1, 3, 3)]}
    pairs = judged_pairs(task, "CoH", results)
    assert [pair.outcome for pair in pairs] == ["win", "tie", "lose", "tie", "win", "win"]
    assert {(pair.method, pair.against, pair.axis) for pair in pairs} == {("CoH", BASE, "points")}
    assert [pair.prompt for pair in pairs] == ["p", "q", "r"] * 2


@pytest.mark.parametrize("experiment", [coh_dialogue, coh_summarization])
def test_a_dry_run_shows_the_preset_and_the_first_batch(tmp_path, model, text, experiment, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = hh(tmp_path / "hh.jsonl", 12)
    held = rows if experiment is coh_dialogue else references(tmp_path / "test.jsonl", 6)
    before = set(tmp_path.rglob("*"))
    experiment.main([
        "--preset", "paper", "--dry-run", "--task.model", model, "--task.feedback", rows, "--task.held-out-dataset",
        held, "--task.held-out-split", "train", "--task.held-out", "4", "--task.pretraining", text,
        "--training.outputs", "4", "--training.pretraining-length", "24", "--methods", "SFT", "CoH",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert "preset paper" in said
    assert "CoH, seed 0" in said
    assert "⟦" in said
    assert set(tmp_path.rglob("*")) == before


class _Task:
    score, unit, decimals, records, setting = "points", "points", 2, [{}], "a model"
    paper, axes, items = Published(source="a paper"), (), ()


def rows(*means, bad=None):
    noise = np.random.default_rng(0).normal(0, 0.1, 200)
    found = []
    for mean in means:
        row = {"score": (mean + noise).tolist()}
        found.append(row if bad is None else row | {"score, bad words": (bad + noise[::-1]).tolist()})
    return found


def test_the_report_reads_the_order_off_the_intervals(tmp_path):
    from rich.console import Console

    results = {
        BASE: rows(0.0), "SFT": rows(1.0, 1.1, 1.05), "C-SFT": rows(0.5, 0.5, 0.5),
        "CoH": rows(0.45, 0.55, 0.5, bad=0.0), "CoH, no chain": rows(0.1),
    }  # fmt: skip
    table = Table(methods=("SFT", "C-SFT", "CoH"), seeds=(0, 1, 2), training=TINY)
    found = write(
        tmp_path, _Task(), table, results, experiment="e", name="n", title="T", seconds=1.0, console=Console(quiet=True)
    )
    assert {row["CoH minus"]: row["the order"] for row in found["differences"]} == {
        BASE: "holds", "SFT": "reversed", "C-SFT": "undecided", "CoH, no chain": "undecided",
    }  # fmt: skip
    assert {row["CoH minus"]: row["CoH's seeds"] for row in found["differences"]} == {
        BASE: "all above", "SFT": "all below", "C-SFT": "mixed", "CoH, no chain": "all above",
    }  # fmt: skip
    (control,) = found["control"]
    assert control["good minus bad"][1] > 0


@pytest.mark.parametrize("experiment", [coh_dialogue, coh_summarization])
def test_every_preset_has_the_rows_of_the_papers_tables(experiment):
    for preset in experiment.PRESETS.values():
        assert {"SFT", "C-SFT", "SFT-U", "CoH"} <= set(preset.methods)
    assert all(experiment.PRESETS[name].rlhf_seeds for name in ("gpu", "paper"))


def test_flags_of_an_experiment(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        coh_dialogue.main(["--methods", "CoX"])
    assert stop.value.code == 2
    assert "there is no method 'CoX'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        coh_summarization.main(["--preset", "mini", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--task.held-out", "--rlhf-seeds", "--rlhf.target-kl"))
    with pytest.raises(SystemExit) as stop:
        coh_dialogue.main(["--rlhf-seeds", "1", "1"])
    assert stop.value.code == 2
    assert "--rlhf-seeds: name each once" in capsys.readouterr().err
