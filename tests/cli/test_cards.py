"""Every folder that a command exports has a card, the same for the same run, that names nothing of this machine."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from jaxalign.cli import main
from jaxalign.errors import InputError
from jaxalign.recipes import hindsight, ppo, reward_model, sft
from jaxalign.recipes._card import Card, _origin, _settings
from jaxalign.recipes._methods import further_terms
from jaxalign.recipes._public import public_dataset, public_rater

COMMON = ("--batch-size", "4", "--mesh", "data=1", "--max-steps", "2")


def read(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("\n---\n", 1)[0].removeprefix("---\n")), text


def train(recipe, model, dataset, output, *more):
    flags = ("--model", model, "--dataset", dataset, "--output-dir", output, *COMMON, *more)
    assert main([recipe, *map(str, flags)]) == 0


@pytest.fixture(scope="module")
def adapted(model, files, tmp_path_factory):
    """A ``dpo`` run with an adapter, from a folder whose card names its base."""
    folder = tmp_path_factory.mktemp("cards")
    base = folder / "based"
    shutil.copytree(model, base)
    (base / "README.md").write_text('---\nbase_model: "org/base"\n---\n# Somebody\'s\n')
    flags = (files["pairs"], folder / "run", "--lora-rank", "2", "--loss", "ipo", "--eval-dataset", files["pairs"])
    train("dpo", base, *flags)
    return base, folder / "run"


def test_final_and_adapter_have_cards(adapted, files):
    _, run = adapted
    header, text = read(run / "final")
    assert header == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "tags": ["jaxalign", "dpo", "ipo"],
    }
    for said in (
        "equation 17", "[arXiv 2310.12036](https://arxiv.org/abs/2310.12036)", "| `beta` | `0.1` |",
        "| `learning_rate` | `1e-06` |", "| data | `pairs.jsonl`, split `train` |", "| steps | 2 |",
        "tokenised data (fingerprint)",
        "| `eval/loss` |", "AutoModelForCausalLM.from_pretrained", "models.load_pretrained", "brings no chat template",
        "## Limitations",
    ):  # fmt: skip
        assert said in text, said
    assert str(files["pairs"].parent) not in text
    assert str(run.parent) not in text
    header, text = read(run / "adapter")
    assert (header["library_name"], header["base_model_relation"]) == ("peft", "adapter")
    assert 'models.load_adapter("adapter", config)' in text
    # Neither the merged model beside it nor the base of its base.
    assert text.count('("PATH_OF_THE_BASE")  # ') == 2
    assert '# what the adapter was trained beside: "based"' in text


def test_the_same_command_again_leaves_the_same_card(adapted, files, capsys):
    base, run = adapted
    flags = (files["pairs"], run, "--lora-rank", "2", "--loss", "ipo", "--eval-dataset", files["pairs"])
    before = read(run / "final")[1]
    (run / "adapter" / "README.md").write_text("# Mine\n")
    capsys.readouterr()
    train("dpo", base, *flags)
    assert read(run / "final")[1] == before
    assert (run / "adapter" / "README.md").read_text() == "# Mine\n"
    assert "README.md is not of jaxalign's making and stays as it is" in " ".join(capsys.readouterr().err.split())


def test_the_bases_own_card_is_untouched(adapted):
    assert (adapted[0] / "README.md").read_text().endswith("# Somebody's\n")


def test_a_reward_models_card_says_what_its_scores_mean(model, files, tmp_path):
    train("reward", model, files["pairs"], tmp_path / "run", "--eval-dataset", files["pairs"])
    header, text = read(tmp_path / "run" / "final")
    assert header["pipeline_tag"] == "text-classification"
    assert header["tags"] == ["jaxalign", "reward", "bradley_terry"]
    assert "base_model" not in header
    for said in ("## What a score means", "reward = (score - ", "| accuracy |", "AutoModelForSequenceClassification"):
        assert said in text


def test_a_converted_model_has_a_card(adapted, tmp_path, shell):
    base, run = adapted
    out = tmp_path / "converted"
    assert shell("convert", "--model", base, "--output-dir", out, "--adapter", run / "adapter")[0] == 0
    header, text = read(out)
    assert header["base_model"] == "org/base"
    assert "with the adapter `run/adapter` merged in" in text
    assert str(tmp_path) not in text


def test_a_card_of_demonstrations(model, files, tmp_path):
    train("sft", model, files["demonstrations"], tmp_path / "run")
    header, text = read(tmp_path / "run" / "final")
    assert header["tags"] == ["jaxalign", "sft", "cross_entropy"]
    assert "datasets" not in header
    assert "Negative log-likelihood of each token" in text


def rows_of(folder):
    """The card's tables: what stands beside each name."""
    lines = read(folder)[1].splitlines()
    return dict(line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| `"))


def settings(config):
    return {name.strip("`"): value.strip("`") for name, value in _settings(config)}


def test_what_a_continued_run_may_change_is_in_the_card(model, files, tmp_path):
    more = ("--save-dtype", "bfloat16", "--eval-dataset", files["pairs"], "--eval-every", 2)
    train("reward", model, files["pairs"], tmp_path / "run", *more, "--normalise-variance", "--centering", "0.01")
    rows = rows_of(tmp_path / "run" / "final")
    for name, value in {
        "max_steps": "`2`", "eval_every": "`2`", "save_dtype": "`bfloat16`", "normalise_variance": "`True`",
        "eval_dataset": "`pairs.jsonl`, split `train`",
    }.items():  # fmt: skip
        assert rows[f"`{name}`"] == value
    assert not {f"`{name}`" for name in ("epochs", "eval_split", "save_every", "mesh", "lora_alpha")} & set(rows)
    text = read(tmp_path / "run" / "final")[1]
    assert "Added to it, times 0.01: Draws rewards towards a mean of 0" in text


def test_settings_are_said_where_they_act():
    common = {"model": "org/m", "output_dir": Path("o"), "reward": "secret/dir/r.py:f"}
    off = settings(ppo.PPOConfig(dataset="org/d", value_clip=None, whiten_advantages=False, **common))
    assert (off["value_clip"], off["whiten_advantages"], off["epochs"]) == ("None", "False", "1")
    assert off["reward"] == "r.py:f"
    assert "dual_clip" not in off
    sft_off = settings(
        sft.SFTConfig(model="org/m", dataset="org/d", output_dir=Path("o"), frozen_parameters=(".*/norm/.*",))
    )
    assert sft_off["frozen_parameters"] == ".*/norm/.*"
    assert not {"eval_every", "eval_dataset", "lora_targets"} & set(sft_off)
    adapted = settings(sft.SFTConfig(model="org/m", dataset="org/d", output_dir=Path("o"), lora_rank=2))
    assert adapted["lora_targets"] == ".*"


def test_the_card_has_one_split(model, files, tmp_path, refused):
    folder = tmp_path / "private" / "data"
    folder.mkdir(parents=True)
    shutil.copy(files["demonstrations"], folder / "test.jsonl")
    named = f"{folder}@test"
    train("sft", model, named, tmp_path / "run", "--eval-dataset", named)
    text = read(tmp_path / "run" / "final")[1]
    assert "| data | `data`, split `test` |" in text
    assert "| `eval_dataset` | `data`, split `test` |" in text
    assert "train" not in {word.strip("`|") for line in text.splitlines() if "split" in line for word in line.split()}
    flags = ("sft", "--model", model, "--dataset", named, "--output-dir", tmp_path / "other", *COMMON)
    line = refused(*flags, "--dataset-split", "validation")
    assert "'test'" in line
    assert "'validation'" in line
    assert "private" not in text


def test_names_of_data_sets_and_raters_hold_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "data").mkdir(parents=True)
    assert public_dataset("runs/data@train") == "data"
    assert public_dataset(f"{tmp_path}/gone.jsonl") == "gone.jsonl"
    assert public_dataset("org/data:part@train") == "org/data:part"
    assert public_dataset(".") == "."
    assert public_rater("secret/dir/r.py:f") == "r.py:f"
    assert public_rater("runs/data#good") == "data#good"
    assert public_rater("package.module:f") == "package.module:f"


def test_ppo_names_its_reward_and_all_it_minimised(model, files, tmp_path):
    train("reward", model, files["pairs"], tmp_path / "reward")
    said = json.loads((tmp_path / "reward" / "final" / "reward.json").read_text())["measured_on"]
    assert said == "the best answers of pairs.jsonl"
    small = ("--max-new-tokens", 4, "--sampling-batch", 4, "--ppo-epochs", 1)
    train("ppo", model, files["pairs"], tmp_path / "run", "--reward-model", tmp_path / "reward" / "final", *small)
    text = read(tmp_path / "run" / "final")[1]
    for said in (
        "| weights of --reward-model (fingerprint) | `", "| weights of --model (fingerprint) | `",
        "| `reward_model` | `reward/final` |", "Added to it, times 0.1: 0.5 (V - return)^2",
        "less 0.05 times the k1 estimate",
    ):  # fmt: skip
        assert said in text, said


def test_the_flags_split_is_of_the_data_sets_that_name_none(files):
    folder = files["ranked"].parent / "several"
    folder.mkdir()
    for split in ("test", "validation"):
        shutil.copy(files["ranked"], folder / f"{split}.jsonl")
    common = {"model": "org/m", "output_dir": Path("o"), "dataset_split": "validation"}
    both = hindsight.HindsightConfig(dataset=(f"{folder}@test", str(folder)), **common)
    assert callable(hindsight.load(both))
    assert [beside for name, beside in _origin(both, Card("hindsight", {}, 1), both.dataset) if name == "data"] == [
        "`several`, split `test`; `several`, split `validation`"
    ]
    with pytest.raises(InputError, match="two different splits, 'test' in the name and 'validation' beside it"):
        hindsight.load(hindsight.HindsightConfig(dataset=(f"{folder}@test",), **common))


def test_further_terms_are_those_that_act():
    common = {"model": "org/m", "dataset": ("org/d",), "output_dir": Path("o")}
    text = hindsight.HindsightConfig(pretraining_dataset="org/text", **common)
    assert further_terms("hindsight", text)[0].startswith("Added to it, times 1.5, of the pretraining text: ")
    assert not further_terms("hindsight", hindsight.HindsightConfig(**common))
    plain = {"model": "org/m", "dataset": "org/d", "output_dir": Path("o")}
    assert not further_terms("reward", reward_model.RewardModelConfig(**plain))
    off = ppo.PPOConfig(reward="module:f", value_coefficient=0.0, kl_coefficient=0.0, **plain)
    assert not further_terms("ppo", off)
