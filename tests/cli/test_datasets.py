"""Published data sets from the shell: files as the hub has them, or a hub id, to a trained model."""

import gzip
import json

from tests.data import hub_rows

SMALL = ("--max-steps", 1, "--batch-size", 1, "--mesh", "data=1", "--max-prompt-length", 100)


def length(prompts, completions):
    return [len(text) for text in completions]


def test_a_local_copy_trains(shell, refused, model, tmp_path):
    name = "Anthropic/hh-rlhf"
    for split in ("train", "test"):
        path = tmp_path / hub_rows.FILES[name].format(split)
        path.parent.mkdir(exist_ok=True)
        parted = {"chosen": hub_rows.HH["chosen"], "rejected": "\n\nHuman: Hi.\n\nAssistant: No."}
        with gzip.open(path, "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in (hub_rows.HH, parted)))
    flags = ("--model", model, "--dataset", f"{path.parent}@test", *SMALL)
    line = refused("dpo", *flags, "--output-dir", tmp_path / "dpo")
    assert line.startswith(f"{path.parent}@test: row 2: fields 'chosen' and 'rejected' do not share their prompt")
    for recipe, more in (("dpo", ()), ("sft", ("--answer", "chosen"))):
        out = tmp_path / recipe
        status, output, errors = shell(recipe, *flags, *more, "--on-bad-row", "skip", "--output-dir", out)
        assert status == 0, errors
        assert f"{path.parent}@test: rows_read 2, examples 1, skipped: fields 'chosen'" in output + errors
        assert (out / "final" / "model.safetensors").is_file()


def test_beginnings_of_reviews_are_prompts_of_ppo(shell, refused, model, tmp_path, monkeypatch):
    hub_rows.install(monkeypatch)
    flags = (
        "ppo", "--model", model, "--dataset", "stanfordnlp/imdb", "--reward", f"{__file__}:length", *SMALL,
        "--max-new-tokens", 4, "--ppo-epochs", 1, "--output-dir", tmp_path / "ppo",
    )  # fmt: skip
    assert "of a 'text' jaxalign ppo --text-prefix makes one" in refused(*flags)
    status, output, errors = shell(*flags, "--text-prefix", 2, 8)
    assert status == 0, errors
    assert "stanfordnlp/imdb: rows_read 2, examples 2" in output + errors
