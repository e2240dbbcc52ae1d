"""``jaxalign sample --feedback``: a folder of ``jaxalign hindsight`` asked as it was trained."""

import json
import re
import shutil

import jax
import pytest

from jaxalign import data, models, recipes
from tests.recipes import toy

TOKENS = 5


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """The folder of a model that says words, as training in hindsight would have left it."""
    folder = tmp_path_factory.mktemp("talker")
    models.save_pretrained(folder, toy.SHAPES["gpt2"], toy.talker(), toy.tokenizer())
    _asked().save(folder)
    return folder


def _asked(**form):
    writer = data.ChainWriter(toy.tokenizer(), data.load_templates("paper"), data.ChainFormat(**form))
    return data.FeedbackPrompts(writer)


def _drafts(contents, polarity, **options):
    """What the library samples; ``places`` are only for its errors."""
    return recipes.sample_with_feedback(
        toy.SHAPES["gpt2"], toy.talker(), _asked(), contents, jax.random.key(3), max_new_tokens=TOKENS,
        polarity=polarity, **options,
    )  # fmt: skip


@pytest.fixture
def sample(shell, talker, tmp_path):
    def run(*flags, to_file=True):
        out = ("--output", tmp_path / "out.jsonl") if to_file else ()
        status, output, errors = shell(
            "sample", "--model", talker, "--max-new-tokens", TOKENS, "--seed", 3, *out, *flags
        )
        assert status == 0
        assert re.fullmatch(r"sampling: \d+ completions\n", errors)
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] if to_file else output

    return run


PROMPTS = [" the film", " good plot"]


@pytest.mark.parametrize("polarity", ["positive", "negative"])
def test_outputs_follow_the_words_of_training(sample, polarity):
    rows = sample("--prompt", *PROMPTS, "--samples-per-prompt", 2, "--feedback", polarity)
    drafts = _drafts(PROMPTS, polarity, samples_per_prompt=2)
    assert rows == [
        {"prompt": prompt, "completion": draft.texts[0], "finished": draft.finished, "feedback": polarity}
        for prompt, draft in zip([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, drafts, strict=True)
    ]
    assert len({row["completion"] for row in rows}) > 2


def test_a_good_and_a_bad_output_are_asked_for_differently(sample):
    flags = ("--prompt", *PROMPTS, "--temperature", 1.5, "--samples-per-prompt", 4, "--feedback")
    good, bad = ([row["completion"] for row in sample(*flags, polarity)] for polarity in ("positive", "negative"))
    assert good != bad
    named = (*flags, "positive", "--template", "request-good-bad-summary")
    assert [row["completion"] for row in sample(*named)] != good


def test_drafts_are_bettered_in_turn(sample):
    flags = ("--prompt", " the", "--samples-per-prompt", 3, "--feedback", "positive", "--improvements", 2)
    rows = sample(*flags)
    assert [row["drafts"] for row in rows] == [
        list(draft.texts) for draft in _drafts([" the"], "positive", samples_per_prompt=3, improvements=2)
    ]
    assert [row["completion"] for row in rows] == [row["drafts"][-1] for row in rows]
    assert max(len(row["drafts"]) for row in rows) == 3
    assert {frozenset(row) for row in rows} == {
        frozenset({"prompt", "completion", "finished", "feedback", "drafts"})
    }  # no log_prob: the sampler's is that of other tokens
    printed = sample(*flags, to_file=False)
    assert printed == "".join(
        " the\n" + "".join(f"[draft {n}] {text}\n" for n, text in enumerate(row["drafts"], 1)) + "---\n" for row in rows
    )


def test_outputs_are_printed_below_their_prompt(sample):
    flags = ("--prompt", *PROMPTS, "--feedback", "positive")
    texts = [f"{row['prompt']}\n{row['completion']}\n---\n" for row in sample(*flags)]
    assert sample(*flags, to_file=False) == "".join(texts)


def test_a_record_says_what_its_outputs_are(sample, tmp_path):
    """Of several kinds, each is asked in its own words; the seeds stay those of the places in the list."""
    records = [{"prompt": " the film", "kind": kind} for kind in ("answer", "summary", "answer")]
    path = toy.write_jsonl(tmp_path / "prompts.jsonl", records)
    rows = sample("--prompts", path, "--feedback", "positive", "--temperature", 1.5)
    found = [
        _drafts([" the film"], "positive", kind=record["kind"], seeds=[place], temperature=1.5)[0].texts[0]
        for place, record in enumerate(records)
    ]
    assert [row["completion"] for row in rows] == found
    other = _drafts([" the film"], "positive", kind="answer", seeds=[1], temperature=1.5)[0].texts[0]
    assert found[1] != other


def test_without_feedback_it_samples_as_any_folder(sample, talker, shell, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(talker, plain)
    (plain / "hindsight.json").unlink()
    flags = ("--prompt", *PROMPTS)
    row = sample(*flags)
    assert {frozenset(found) for found in row} == {
        frozenset({"prompt", "completion", "finished", "log_prob", "token_log_probs"})
    }
    status, printed, _ = shell("sample", "--model", plain, "--max-new-tokens", TOKENS, "--seed", 3, *flags)
    assert (status, printed) == (0, sample(*flags, to_file=False))


FEEDBACK = ("--feedback", "positive")
NOTHING = "there are no words of feedback without --feedback"
BAD = {
    "a template alone": (["--template", "x"], f"--template: {NOTHING}"),
    "improvements alone": (["--improvements", "1"], f"--improvements: {NOTHING}"),
    "better words alone": (["--better-template", "x"], f"--better-template: {NOTHING}"),
    "better words for nothing": (
        [*FEEDBACK, "--better-template", "x"], "--better-template: nothing is bettered without --improvements",
    ),
    "fewer than no improvements": ([*FEEDBACK, "--improvements", "-1"], "--improvements: must be at least 0, is -1"),
    "neither good nor bad": (["--feedback", "best"], "--feedback: expected one of negative, positive, None, got"),
    "stop strings": ([*FEEDBACK, "--stop-strings", "a"], "--stop-strings: with --feedback outputs end as in training"),
    "an unknown template": ([*FEEDBACK, "--template", "x"], "--template: templates paper: no template 'x'; there are "),
    "a template of the other kind": (
        ["--feedback", "negative", "--template", "statement-good-bad-answer"],
        "--template: template 'statement-good-bad-answer' does not begin with the negative output",
    ),
    "better words that ask for worse": (
        [*FEEDBACK, "--improvements", "1", "--better-template", "statement-good-bad-answer"],
        "--better-template: template 'statement-good-bad-answer' begins with the positive output",
    ),
    "a nucleus of too much": ([*FEEDBACK, "--top-p", "1.5"], "--top-p must be in (0, 1], is 1.5"),
    "a prompt too long": (
        [*FEEDBACK, "--prompt", " the", " was good" * 30],
        "--prompt 2 has 73 tokens; with --max-new-tokens the model's max_positions leaves room for 59",
    ),
    "no room to better anything": (
        [*FEEDBACK, "--prompt", " the" + " was good" * 20, "--improvements", "1", "--samples-per-prompt", "4"],
        "--improvements: no output leaves room for a better one (64 positions)",
    ),
    "outputs of an unknown kind": ([*FEEDBACK, "--prompts", "ROWS"], "ROWS: row 1: field 'kind': expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, refused, talker, tmp_path):
    flags, message = BAD[case]
    rows = str(toy.write_jsonl(tmp_path / "rows.jsonl", [{"prompt": " the", "kind": "poem"}]))
    prompt = () if {"--prompt", "--prompts"} & set(flags) else ("--prompt", " the")
    flags = [rows if flag == "ROWS" else flag for flag in flags]
    line = refused("sample", "--model", talker, "--max-new-tokens", TOKENS, *prompt, *flags)
    assert line.startswith(message.replace("ROWS", rows))


def test_a_folder_that_hindsight_did_not_write_is_named(refused, model):
    assert refused("sample", "--model", model, "--prompt", "a", *FEEDBACK) == (
        f"--feedback: {model}: no hindsight.json: this model was not trained by jaxalign hindsight; it has no words of "
        "feedback"
    )


def test_a_baseline_without_feedback_is_asked_in_neutral_words_and_betters_nothing(refused, shell, talker, tmp_path):
    folder = tmp_path / "neutral"
    shutil.copytree(talker, folder)
    _asked(markers="neutral", structures=("p",)).save(folder)
    flags = ("sample", "--model", folder, "--max-new-tokens", TOKENS, "--prompt", " the", "--feedback", "positive")
    assert shell(*flags)[0] == 0
    assert refused(*flags[:-1], "negative").endswith("(--markers neutral): it knows no bad words")
    assert refused(*flags, "--template", "x") == (
        f"--template: {folder} was trained without feedback (--markers neutral)"
    )
    assert refused(*flags, "--improvements", 1).startswith("--improvements: this model was trained without feedback")
