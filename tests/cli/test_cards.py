"""Every folder that a command exports has a card, the same for the same run, that names nothing of this machine."""

import shutil

import pytest
import yaml

from jaxalign.cli import main

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
        "| `learning_rate` | `1e-06` |", "| data | `pairs.jsonl` |", "| steps | 2 |", "tokenised data (fingerprint)",
        "| `eval/loss` |", "AutoModelForCausalLM.from_pretrained", "models.load_pretrained", "brings no chat template",
        "## Limitations",
    ):  # fmt: skip
        assert said in text, said
    assert str(files["pairs"].parent) not in text
    assert str(run.parent) not in text
    header, text = read(run / "adapter")
    assert (header["library_name"], header["base_model_relation"]) == ("peft", "adapter")
    assert 'models.load_adapter("adapter", config)' in text


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
    assert "with the adapter `adapter` merged in" in text
    assert str(tmp_path) not in text


def test_a_card_of_demonstrations(model, files, tmp_path):
    train("sft", model, files["demonstrations"], tmp_path / "run")
    header, text = read(tmp_path / "run" / "final")
    assert header["tags"] == ["jaxalign", "sft", "cross_entropy"]
    assert "datasets" not in header
    assert "Negative log-likelihood of each token" in text
