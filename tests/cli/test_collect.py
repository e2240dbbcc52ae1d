"""``jaxalign collect``."""

import json

import jax
import numpy as np
import pytest

from jaxalign import models, recipes
from tests.recipes import toy
from tests.tolerances import FLOAT32

RATER = "def kind(prompts, completions):\n    return [text.count(' good') for text in completions]\n"


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talker")
    models.save_pretrained(folder, toy.SHAPES["gpt2"], toy.talker(), toy.tokenizer())
    return folder


@pytest.fixture
def flags(talker, tmp_path):
    prompts = toy.write_jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in (" the", " good film", " bad")])
    (tmp_path / "rating.py").write_text(RATER)
    return ("--model", talker, "--dataset", prompts, "--output", tmp_path / "out.jsonl", "--max-new-tokens", 6,
            "--samples-per-prompt", 4, "--save-every", 2)  # fmt: skip


def test_a_function_rates(shell, flags, tmp_path):
    rated = (*flags, "--rater", f"{tmp_path / 'rating.py'}:kind")
    status, output, errors = shell("collect", *rated)
    assert (status, output) == (0, "")
    assert "2 of 3 prompts\n3 of 3 prompts\n" in errors
    assert f"records, {errors.split('records, ')[1]}".endswith(f"they are in {tmp_path / 'out.jsonl'}\n")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [" the", " good film", " bad"]
    for row in rows:
        assert row["ratings"] == [text.count(" good") for text in row["responses"]]
    status, _, errors = shell("collect", *rated)
    assert status == 0
    assert "of 3 prompts" not in errors  # nothing is done again
    status, _, errors = shell("collect", *rated, "--records", "all")
    assert status == 0
    pairs = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(row["chosen"].count(" good") > row["rejected"].count(" good") for row in pairs)
    assert len(pairs) > 1


def test_a_reward_model_rates(shell, flags, tmp_path):
    """With a tokenizer of its own; another model in its folder is another rater."""
    folder = tmp_path / "reward"

    def save(seed):
        config, params = models.add_score_head(toy.SHAPES["llama"], toy.params("llama"), jax.random.key(seed))
        models.save_reward_model(folder, models.RewardModel(config, params, mean=1.0), toy.tokenizer())

    save(0)
    status, _, errors = shell("collect", *flags, "--rater", folder)
    assert status == 0, errors
    reward = recipes.load_text_reward(str(folder))
    for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()):
        found = reward([row["prompt"]] * len(row["ratings"]), row["responses"], finished=row["finished"])
        np.testing.assert_allclose(row["ratings"], found, rtol=FLOAT32, atol=FLOAT32)
    save(1)
    status, _, errors = shell("collect", *flags, "--rater", folder)
    assert status == 2
    assert "jaxalign: weights of --rater: was '" in errors


def test_people_are_asked(shell, flags, tmp_path):
    asked = (*flags, "--people", "comparisons", "--sheet", tmp_path / "s.csv")
    status, _, errors = shell("collect", *asked)
    assert status == 0
    waiting = len((tmp_path / "s.csv").read_text().splitlines()) - 1
    assert errors.endswith(
        f"{waiting} questions in {tmp_path / 's.csv'} have no answer yet; fill them in, then run the same command "
        "again\n"
    )


BAD = {
    "nobody rates": ([], "--rater, --judge or --people: give one of the three"),
    "two rate": (["--rater", "a:b", "--people", "ratings"], "--rater, --judge or --people: give one of the three"),
    "no such rater": (["--rater", "no_such_module_q:f"], "--rater: no module named no_such_module_q"),
    "a folder judges": (["--judge", "."], "--judge: . is no function (package.module:function"),
    "one sample": (["--rater", "a:b", "--samples-per-prompt", 1], "--samples-per-prompt: must be at least 2, is 1"),
    "a sheet for no one": (["--rater", "a:b", "--sheet", "s.csv"], "--sheet: only people are asked through a file"),
    "nothing compared": (["--rater", "a:b", "--comparisons-per-prompt", 2], "--comparisons-per-prompt: nothing is"),
    "no rows": (["--rater", "a:b", "--dataset-limit", 0], "--dataset-limit: must be at least 1, is 0"),
    "output": (["--rater", "json:dumps", "--output", "a.csv"], "--output: a.csv: must end with .jsonl"),
    "min-p": (["--rater", "json:dumps", "--min-p", "1"], "--min-p: must be in [0, 1), is 1.0"),
    "temperature": (["--rater", "a:b", "--temperature", "inf"], "--temperature: must be at least 0, is inf"),
    "top-p": (["--rater", "json:dumps", "--top-p", "2"], "--top-p: must be in (0, 1], is 2.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, shell, flags):
    more, message = BAD[case]
    status, _, errors = shell("collect", *flags, *more)
    assert status == 2
    assert errors.splitlines()[-1].startswith(f"jaxalign: {message}")


def test_a_rater_that_fails_names_the_row(shell, flags, tmp_path):
    (tmp_path / "rating.py").write_text(
        "def kind(p, c):\n    return [float('nan') if ' bad' in t else 0.0 for t in p]\n"
    )
    status, _, errors = shell("collect", *flags, "--rater", f"{tmp_path / 'rating.py'}:kind")
    assert status == 2
    assert f"reward: the score of {tmp_path / 'p.jsonl'}: row 3 is not finite: nan (prompt ' bad', " in errors
