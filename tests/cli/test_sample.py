"""``jaxalign sample``."""

import json
import re

import jax
import numpy as np
import pytest

from jaxalign import models, recipes, sampling, sharding
from tests.recipes import toy
from tests.tolerances import FLOAT32


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """The folder of a model that says words, and its parameters."""
    params = toy.talker()
    folder = tmp_path_factory.mktemp("talker")
    models.save_pretrained(folder, toy.SHAPES["gpt2"], params, toy.tokenizer())
    return folder, params


@pytest.fixture
def sample(shell, talker):
    def run(*flags):
        status, output, errors = shell("sample", "--model", talker[0], "--max-new-tokens", 6, *flags)
        assert status == 0
        assert re.fullmatch(r"sampling: \d+ completions\n", errors)
        return output

    return run


def test_it_prints_prompts_with_their_completions(sample):
    *texts, end = sample("--prompt", "the film", "good plot", "--samples-per-prompt", 4).split("\n---\n")
    assert end == ""
    for text, prompt in zip(texts, ["the film"] * 4 + ["good plot"] * 4, strict=True):
        assert text.startswith(prompt)
    assert len(set(texts)) > 4


def test_the_seed_decides(sample):
    flags = ("--prompt", "the film", "--samples-per-prompt", 3)
    first = sample(*flags, "--seed", 3)
    assert sample(*flags, "--seed", 3) == first
    assert sample(*flags, "--seed", 4) != first


def test_it_writes_records_that_say_what_was_sampled(sample, talker, tmp_path):
    path = toy.write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": " good film"}, {"prompt": " bad plot"}])
    out = tmp_path / "new" / "out.jsonl"
    flags = ("--prompts", path, "--prompt", " the", "--output", out, "--samples-per-prompt", 3, "--temperature", 0.7)
    assert sample(*flags) == ""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [" the"] * 3 + [" good film"] * 3 + [" bad plot"] * 3
    assert {frozenset(row) for row in rows} == {
        frozenset({"prompt", "completion", "finished", "log_prob", "token_log_probs"})
    }
    assert {row["finished"] for row in rows} == {True, False}
    # The records are training data as they are, and training scores them as the sampler did.
    rows = [row for row in rows if row["completion"]]
    assert len(rows) > 3
    one_device = sharding.parse_mesh("data=1")
    scores = recipes.example_log_probs(
        toy.SHAPES["gpt2"], talker[1], toy.examples(rows), temperature=0.7, mesh=one_device
    )
    found = [row["log_prob"] for row in rows]
    np.testing.assert_allclose([sum(row["token_log_probs"]) for row in rows], found, rtol=FLOAT32)
    np.testing.assert_allclose(found, [score.sum() for score in scores], rtol=FLOAT32, atol=FLOAT32)


def test_it_is_the_sampler_greedily(sample, talker):
    """Temperature 0, against the sampler called from Python."""
    output = sample("--prompt", " good film", "--temperature", 0)
    tokenizer = toy.tokenizer()
    found = sampling.generate(
        toy.SHAPES["gpt2"], talker[1], [tokenizer.encode(" good film")], jax.random.key(0),
        max_new_tokens=6, temperature=0.0, stop_tokens=(tokenizer.eos_token_id,),
    )  # fmt: skip
    kept = [int(token) for token in found.tokens[0][found.mask[0]]]
    kept = kept[:-1] if found.finished[0] else kept
    assert output == f" good film{tokenizer.decode(kept)}\n---\n"


def test_top_k_1_is_greedy_and_finds_no_second_answer(sample):
    one = sample("--prompt", " good film", "--top-k", 1, "--seed", 5)
    assert one == sample("--prompt", " good film", "--temperature", 0)


def test_stop_strings_end_completions_and_are_left_out(sample):
    flags = ("--prompt", " good film", " bad film", "--samples-per-prompt", 8)
    whole = sample(*flags).split("\n---\n")[:-1]
    letter = next(text[-1] for text in whole if len(text) > len(" good film") + 2)
    cut = sample(*flags, "--stop-strings", letter).split("\n---\n")[:-1]
    starts = [" good film"] * 8 + [" bad film"] * 8
    expected = [start + text[len(start) :].split(letter)[0] for start, text in zip(starts, whole, strict=True)]
    assert cut == expected
    assert cut != whole


BAD = {
    "an empty stop string": (["--prompt", "a", "--stop-strings", ""], "--stop-strings[0] is empty"),
    "no prompt": ([], "--prompt or --prompts: give at least one prompt"),
    "no file": (["--prompts", "none.jsonl"], "none.jsonl: no such file or folder"),
    "an empty prompt": (["--prompt", ""], "--prompt 1: field 'prompt' is empty and the tokenizer has no BOS"),
    "top-p": (["--prompt", "a", "--top-p", "1.5"], "--top-p must be in (0, 1], is 1.5"),
    "temperature": (["--prompt", "a", "--temperature", "-1"], "--temperature must be finite and at least 0, is -1"),
    "samples": (["--prompt", "a", "--samples-per-prompt", "0"], "--samples-per-prompt must be at least 1, is 0"),
    "too long": (
        ["--prompt", "a", "the film" + " was good" * 40, "--max-new-tokens", "8"],
        "--prompt 2 has 83 tokens; with --max-new-tokens the model's max_positions leaves room for 56",
    ),
    "a misspelt flag": (["--temprature", "1"], "unknown flag --temprature; did you mean --temperature?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, refused, model):
    flags, message = BAD[case]
    assert refused("sample", "--model", model, *flags).startswith(message)


def test_a_record_without_prompt_is_named(refused, model, tmp_path):
    path = toy.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"chosen": "a b c", "rejected": "a b d"}])
    assert refused("sample", "--model", model, "--prompts", path) == f"{path}: row 2: missing field 'prompt'"


def test_an_output_that_cannot_be_written_is_named(refused, model, tmp_path):
    assert refused("sample", "--model", model, "--prompt", "a", "--output", tmp_path) == (
        f"--output: {tmp_path} is a folder, not a file"
    )
    assert refused("sample", "--model", tmp_path, "--prompt", "a").startswith(f"{tmp_path}: no config.json")


def test_messages_go_through_the_chat_template(shell, tmp_path):
    tokenizer = recipes.load_tokenizer(str(toy.write_model(tmp_path / "model")))
    tokenizer.chat_template = "{% for m in messages %} {{ m['content'] }}{% endfor %} the"
    models.save_pretrained(tmp_path / "model", toy.SHAPES["llama"], toy.params("llama"), tokenizer)
    prompts = toy.write_jsonl(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "good film"}]}])
    flags = ("--model", tmp_path / "model", "--max-new-tokens", 6, "--temperature", 0)
    _, chat, errors = shell("sample", *flags, "--prompts", prompts)
    assert errors == "sampling: 1 completions\n"
    _, plain, _ = shell("sample", *flags, "--prompt", " good film the")
    assert chat.endswith(plain.removeprefix(" good film the"))
    assert json.loads(chat[: chat.index("]") + 1]) == [{"role": "user", "content": "good film"}]
