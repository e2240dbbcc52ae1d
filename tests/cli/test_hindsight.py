"""``jaxalign hindsight``: presets, what records may look like, mixtures, what is written, a run that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxalign import data, models, recipes, sharding
from jaxalign.cli import main
from jaxalign.recipes.hindsight import PRESETS
from jaxalign.training import Watchdog
from tests.recipes import toy
from tests.tolerances import FLOAT32

CLOCK = {"seconds", "tokens_per_second", "time"}
CONFIG = toy.SHAPES["llama"].replace(max_positions=256)
HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with room for the paper's words, which the toy tokenizer has as bytes."""
    folder = tmp_path_factory.mktemp("wide")
    models.save_pretrained(folder, CONFIG, toy.params("llama"), toy.tokenizer())
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Files of records of every form, of plain text, and of templates."""
    folder = tmp_path_factory.mktemp("rows")
    records = toy.feedback_records()
    turns = [{"role": "user", "content": "good film"}]
    found = {
        "rated": records,
        "pairs": toy.pair_records(),
        "dialogues": [
            {
                "chosen": f"{HUMAN}it was{ASSISTANT}good{HUMAN}the plot{ASSISTANT}fun to watch",
                "rejected": f"{HUMAN}it was{ASSISTANT}good{HUMAN}the plot{ASSISTANT}bad",
            }
        ]
        * 2,
        "messages": [
            {"prompt": turns, "chosen": [{"role": "assistant", "content": "fun"}],
             "rejected": [{"role": "assistant", "content": "bad plot"}]}
        ],
        "labels": [{"prompt": " the film", "completion": " was fun", "label": good} for good in (True, False)],
        "words": [
            {"prompt": " the film", "completion": " was fun", "feedback": "fun to watch:"},
            {"prompt": " it", "responses": [" good", " bad"], "feedback": ["good but:", "bad:"]},
        ],
        "text": [{"text": toy.words(count, toy.random.Random(count))} for count in (30, 5, 8, 40)],
    }  # fmt: skip
    paths = {name: toy.write_jsonl(folder / f"{name}.jsonl", some) for name, some in found.items()}
    paths["toy"] = folder / "toy.toml"
    paths["toy"].write_text(toy.TEMPLATES)
    return paths


@pytest.fixture
def flags(wide, rows, tmp_path):
    """A command's flags: two steps on ``rated`` where ``more`` does not say otherwise."""

    def make(*more, out=tmp_path / "out"):
        defaults = {
            "--model": wide, "--dataset": rows["rated"], "--output-dir": out, "--max-steps": 2, "--batch-size": 4,
            "--mesh": "data=1", "--max-length": 200, "--templates": rows["toy"], "--learning-rate": 1e-3,
        }  # fmt: skip
        given = {str(part) for part in more}
        kept = [part for name, value in defaults.items() if name not in given for part in (name, value)]
        return ["hindsight", *kept, *more]

    return make


def table(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


PRETRAINED = {name for name, settings in PRESETS.items() if "pretraining_weight" in settings}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains(preset, flags, rows, shell, refused, tmp_path):
    command = flags("--preset", preset)
    if "templates" in PRESETS[preset]:  # what the preset says of templates, not what the tests say
        at = command.index("--templates")
        del command[at : at + 2]
    if preset in PRETRAINED:
        assert "--pretraining-dataset" in refused(*command, "--pretraining-batch-size", 8)
        command += ["--pretraining-dataset", rows["text"], "--pretraining-batch-size", 8, "--pretraining-length", 16]
    status, _, errors = shell(*command)
    assert status == 0, errors
    assert f"2 steps done; the model is in {tmp_path}/out/final" in errors
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    for name, value in PRESETS[preset].items():
        if name not in ("batch_size", "pretraining_batch_size", "max_length"):
            assert described[name] == (list(value) if isinstance(value, tuple) else value), name
    found = table(tmp_path / "out")
    assert [row["step"] for row in found] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in found)
    assert ("loss/pretraining" in found[0]) == (preset in PRETRAINED)
    assert ("loss/unlikelihood" in found[0]) == (preset == "sft-u")
    assert ("without the paper's pretraining term" in errors) == (preset not in PRETRAINED)
    if preset in PRETRAINED:
        expected = found[0]["loss/feedback"] + PRESETS[preset]["pretraining_weight"] * found[0]["loss/pretraining"]
        assert found[0]["loss"] == pytest.approx(expected, rel=FLOAT32)
    asked = data.load_feedback_prompts(tmp_path / "out" / "final", toy.tokenizer())
    words = toy.tokenizer().decode(asked.tokens(" the film"))
    said = {"released": "A helpful answer:", "paper": "A good answer is:", "c-sft": " good:"}
    assert words.endswith(said.get(preset, " it was:"))


def test_records_of_every_form_make_one_mixture(flags, rows, shell, tmp_path):
    names = ["rated", "pairs", "dialogues", "messages", "labels", "words"]
    some = [rows[name] for name in names]
    status, _, errors = shell(*flags("--dataset", *some))
    assert status == 0, errors
    assert f"{', '.join(map(str, some))}: rows_read 23, examples 23" in errors
    alone = table(tmp_path / "out")
    status, _, errors = shell(*flags("--dataset", *some, "--dataset-weights", 4, 1, 1, 1, 1, 2, out=tmp_path / "other"))
    assert status == 0, errors
    assert table(tmp_path / "other") != alone
    config = recipes.HindsightConfig(
        model="", dataset=tuple(map(str, some)), output_dir=tmp_path, dataset_weights=(4, 1, 1, 1, 1, 2),
        templates=str(rows["toy"]),
    )  # fmt: skip
    examples = recipes.hindsight.load(config)(toy.tokenizer()).examples
    assert examples.mixture.weights == (4, 1, 1, 1, 1, 2)
    assert examples.mixture.source.tolist() == [0] * 8 + [1] * 8 + [2] * 2 + [3] + [4] * 2 + [5] * 2
    decode = toy.tokenizer().decode
    written = [decode(examples.draw(index, 0).tokens) for index in range(len(examples))]
    assert written[16].startswith("it: it was to: good it: the plot ")
    assert written[18].startswith("it: good film ")
    assert written[19] in (" the film good: was fun<eos>", " the film good plot: was fun<eos>")
    assert written[20].startswith((" the film bad: was fun<eos>", " the film bad film: was fun<eos>"))
    assert written[21] == " the film fun to watch: was fun<eos>"
    assert " good but: good<eos>" in written[22]
    assert " bad: bad<eos>" in written[22]


def test_the_models_likelihood_is_judged_on_held_out_outputs(flags, rows, shell, tmp_path, monkeypatch):
    """And only the training records are limited; a record of one output has nothing to compare."""
    held_out = [*toy.feedback_records(), {"prompt": " it", "completion": " was", "label": True}]
    path = toy.write_jsonl(tmp_path / "held_out.jsonl", held_out)
    waits = []
    monkeypatch.setattr(Watchdog, "wait_for", lambda self, what, *, slow=False: waits.append((what, slow)))
    status, _, errors = shell(*flags("--eval-dataset", path, "--dataset-limit", 5))
    assert status == 0, errors
    # A batch of them has a time of its own: four rows, in one of which are two.
    done = ["", ", 5 of 8 done", ", 8 of 8 done"]
    assert waits[-3:] == [(f"held-out outputs to be compared{so_far}", True) for so_far in done]
    assert "rows_read 5, examples 5" in errors
    assert "rows_read 9, examples 9" in errors
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    config, params = models.load_pretrained(tmp_path / "out" / "final")
    asked = data.load_feedback_prompts(tmp_path / "out" / "final", toy.tokenizer())
    examples = [asked.comparison(record) for record in toy.feedback_records()]
    margins = recipes.likelihood_margins(config, params, examples, mesh=sharding.parse_mesh("data=1"))
    assert found["pairs"] == len(margins) == 13
    assert found["accuracy"] == pytest.approx(np.mean(margins > 0))
    assert found["low"] < found["accuracy"] < found["high"]
    assert (found["step"], found["dataset"]) == (2, str(path))
    assert [row["step"] for row in table(tmp_path / "out") if "eval/nll/worse" in row] == [0, 2]


def test_an_adapter_trains_in_hindsight(flags, rows, shell, tmp_path):
    adapter = ("--lora-rank", 2, "--lora-dropout", 0.1, "--pretraining-dataset", rows["text"])
    status, _, errors = shell(*flags(*adapter, "--pretraining-batch-size", 4, "--pretraining-length", 16))
    assert status == 0, errors
    assert f"its adapter alone in {tmp_path}/out/adapter" in errors
    merged = models.load_pretrained(tmp_path / "out" / "final")[1]
    adapted, lora = models.load_adapter(tmp_path / "out" / "adapter", CONFIG)
    by_hand = models.merge_lora(adapted, toy.params("llama"), lora)
    for found, expected in zip(toy.leaves(merged).values(), toy.leaves(by_hand).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=FLOAT32, atol=FLOAT32 * np.abs(expected).max())
    assert (tmp_path / "out" / "final" / "hindsight.json").is_file()


TEXT = "there is no text without --pretraining-dataset"
BAD = {
    "nothing to learn": (["--dataset"], "--dataset: give records with feedback, or --prompts to sample and rate"),
    "weights": (["--dataset-weights", 1, 2], "--dataset-weights: 2 numbers for 1 datasets"),
    "a weight of nothing": (["--dataset-weights", 0], "--dataset-weights: must be above 0"),
    "lambda": (["--pretraining-weight", 1.5], f"--pretraining-weight: {TEXT}"),
    "text rows": (["--pretraining-batch-size", 4], f"--pretraining-batch-size: {TEXT}"),
    "text length": (["--pretraining-length", 4], f"--pretraining-length: {TEXT}"),
    "text limit": (["--pretraining-limit", 4], f"--pretraining-limit: {TEXT}"),
    "text split": (["--pretraining-split", "test"], f"--pretraining-split: {TEXT}"),
    "a short window": (["--pretraining-dataset", "a", "--pretraining-length", 1], "--pretraining-length: must be at"),
    "a rater": (["--rater", "a:b"], "--rater: nothing is sampled without --prompts"),
    "samples": (["--samples-per-prompt", 2], "--samples-per-prompt: nothing is sampled without --prompts"),
    "no rater": (["--prompts", "p.jsonl"], "--rater, --judge or --people: with --prompts give one of the three"),
    "two raters": (["--prompts", "p.jsonl", "--rater", "a:b", "--people", "ratings"], "--rater, --judge or --people: "),
    "a ratio": (["--forget-max-ratio", 1.5], "--forget-max-ratio: must be in [0, 1], is 1.5"),
    "ratios": (["--forget-min-ratio", 0.5], "--forget-min-ratio: 0.5 is above --forget-max-ratio 0.05"),
    "alpha": (["--unlikelihood-weight", -1], "--unlikelihood-weight: must be at least 0, is -1"),
    "nothing worse": (["--unlikelihood-weight", 1, "--structures", "p"], "--unlikelihood-weight: it is of"),
    "a structure": (["--structures", "pp"], "--structures: 'pp': expected p, n, pn, np, aux, chain"),
    "neutral pairs": (["--markers", "neutral"], "--structures: np puts outputs of different quality behind one"),
    "chain length": (["--chain-length", 3], "--chain-length: --structures names no chain"),
    "a template": (["--template-names", "none"], "--template-names: TOY has no template 'none'; it has: "),
    "a templates file": (["--templates", "none.toml"], "templates: none.toml: no such file"),
    "a layout": (["--pair-layout", "two_rows"], "--pair-layout: chains are single sequences"),
    "a cached trunk": (["--cache-trunk", "--frozen-layers", 1], "--cache-trunk: chains are drawn anew in every epoch"),
    "a length": (["--max-length", 8], "RATED: row 2: field 'prompt' has 6 tokens, room is for 4"),
    "rows of text": (
        ["--pretraining-dataset", "TEXT", "--pretraining-batch-size", 3, "--accumulation", 2, "--pretraining-length",
         16],
        "--pretraining-batch-size: 3 rows do not divide into 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, flags, rows, refused):
    more, message = BAD[case]
    line = refused(*flags(*[rows["text"] if part == "TEXT" else part for part in more]))
    assert line.startswith(message.replace("RATED", str(rows["rated"])).replace("TOY", str(rows["toy"])))


def test_a_record_without_feedback_is_named(flags, refused, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [*toy.feedback_records()[:2], {"prompt": "a", "completion": "b"}])
    line = refused(*flags("--dataset", path))
    assert line.startswith(f"{path}: row 3: missing field 'feedback' (or 'label')")


# --- a run that goes on -----------------------------------------------------------------------------------------------

LONG = ("--max-steps", 20, "--batch-size", 6, "--save-every", 2, "--dataset-weights", 2, 1, "--forget-max-ratio", 0.3,
        "--pretraining-batch-size", 4, "--pretraining-length", 16, "--seed", 5)  # fmt: skip


@pytest.fixture
def long(flags, rows):
    """A mixture under drawn templates and masks, with text: 16 records in batches of 6."""

    def make(out):
        return flags("--dataset", rows["rated"], rows["pairs"], "--pretraining-dataset", rows["text"], *LONG, out=out)

    return make


def killed(command, folder, step):
    """The command in a process of its own, killed once it has saved that step."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[2] / ".jax_cache")
        ),
    }  # fmt: skip
    words = [sys.executable, "-m", "jaxalign", *map(str, command)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    while saved(folder) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert step <= saved(folder) < 20, "the signal came too late to show anything"


def saved(folder):
    found = (folder / "checkpoints").iterdir() if (folder / "checkpoints").exists() else []
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def test_killed_and_continued_is_undisturbed_bit_for_bit(long, shell, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    status, _, errors = shell(*long(whole))
    assert status == 0, errors
    killed(long(parts), parts, 8)
    assert not (parts / "final").exists()
    status, _, errors = shell(*long(parts))
    assert status == 0, errors
    assert table(parts) == table(whole)
    assert [row["step"] for row in table(whole)] == list(range(1, 21))
    for name in ("model.safetensors", "hindsight.json"):
        assert (parts / "final" / name).read_bytes() == (whole / "final" / name).read_bytes(), name


def test_another_run_in_the_same_folder_is_refused_by_name(flags, rows, shell, refused, tmp_path):
    copies = {}
    for name in ("rated", "toy", "text"):
        copies[name] = tmp_path / rows[name].name
        copies[name].write_bytes(rows[name].read_bytes())
    command = flags(
        "--dataset", copies["rated"], rows["pairs"], "--dataset-weights", 1, 1, "--templates", copies["toy"],
        "--pretraining-dataset", copies["text"], "--pretraining-batch-size", 4, "--pretraining-length", 16,
        "--max-steps", 1,
    )  # fmt: skip
    assert shell(*command)[0] == 0
    at = command.index("--dataset-weights")
    assert refused(*command[: at + 1], 1, 2, *command[at + 3 :]).startswith("--dataset-weights is [1.0, 2.0], but ")
    assert refused(*command, "--forget-max-ratio", 0.1).startswith("--forget-max-ratio is 0.1, but ")
    changes = {
        "toy": ("bad film: {negative}", "bad plot: {negative}", "other tokenised data"),
        "rated": ('"ratings": [1, 0]', '"ratings": [0, 1]', "other tokenised data"),
        "text": ('{"text": "', '{"text": " film', "other tokenised pretraining text"),
    }
    for name, (old, new, message) in changes.items():
        content = copies[name].read_text()
        assert old in content
        copies[name].write_text(content.replace(old, new, 1))
        assert f"was started with {message}: go on with the same" in refused(*command), name
        copies[name].write_text(content)
    assert shell(*command)[0] == 0


def test_a_finished_run_is_done_at_once(flags, shell, tmp_path):
    assert main([str(part) for part in flags()]) == 0
    before = (tmp_path / "out" / "final" / "model.safetensors").read_bytes()
    status, _, errors = shell(*flags())
    assert status == 0
    assert "2 steps done" in errors
    assert (tmp_path / "out" / "final" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "final" / "hindsight.json").is_file()
