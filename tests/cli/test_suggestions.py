"""A name that is refused comes with the nearest one that is not: commands, flags, choices, presets, files, fields."""

import pytest

from tests.recipes import toy

FLAGS = ("--model", "MODEL", "--dataset", "DATA", "--output-dir", "OUT")

REFUSED = {
    "a choice, by its flag": (("sft", *FLAGS, "--dtype", "bfloat1"), "--dtype: expected one of float32, bfloat16"),
    "a command": (("hindsite",), "unknown command 'hindsite'; did you mean 'hindsight'?"),
    "a flag": (("sft", *FLAGS, "--learing-rate", "1"), "unknown flag --learing-rate; did you mean --learning-rate?"),
    "a choice": (("dpo", *FLAGS, "--loss", "sigmoids"), "got 'sigmoids'; did you mean 'sigmoid'?"),
    "a preset": (("ppo", *FLAGS, "--preset", "summarization"), "got summarization; did you mean 'summarisation'?"),
    "templates": (("hindsight", *FLAGS, "--templates", "paper2"), "did you mean 'paper'?"),
    "a data file": (("sft", *FLAGS, "--dataset", "FOLDER/row.jsonl"), "; did you mean FOLDER/rows.jsonl?"),
    "a model folder": (("sft", *FLAGS, "--model", "FOLDER/modl"), "FOLDER/modl: no such folder; did you mean"),
    "a field": (("sft", *FLAGS, "--dataset", "FOLDER/rows.jsonl"), "'prompt'; 'prompt_text' looks like it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_the_nearest(case, model, files, tmp_path, refused):
    toy.write_jsonl(tmp_path / "rows.jsonl", [{"prompt_text": "a", "completion": "b"}])
    (tmp_path / "model").mkdir()
    known = {"MODEL": model, "DATA": files["demonstrations"], "OUT": tmp_path / "out"}
    flags, said = REFUSED[case]
    given = [known.get(flag, str(flag).replace("FOLDER", str(tmp_path))) for flag in flags]
    assert said.replace("FOLDER", str(tmp_path)) in refused(*given)


def test_fields_of_other_names_are_matched_with_ours(model, tmp_path, refused):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [{"promt": "a", "answer": "b"}])
    line = refused("sft", "--model", model, "--dataset", path, "--output-dir", tmp_path / "out")
    assert "it has: answer, promt; did you mean 'prompt' by 'promt'?" in line
