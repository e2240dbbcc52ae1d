"""Outputs of the model: sampled, rated and frozen before a run (Algorithm 1), asked for and bettered after it."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from jaxalign import data, models, recipes, sampling
from jaxalign.errors import InputError
from jaxalign.recipes import HindsightConfig, hindsight
from jaxalign.recipes._hindsight_collect import frozen_feedback
from tests.recipes import toy

CONFIG = toy.SHAPES["gpt2"]
RATERS = """
from pathlib import Path

def kind(prompts, completions):
    with Path(__file__).with_name("calls").open("a") as calls:
        calls.write("".join(f"{prompt}\\n" for prompt in prompts))
    return [text.count(" good") + 0.1 * text.count(" fun") for text in completions]

def longer(prompts, first, second):
    return ["first" if len(a) > len(b) else "second" if len(b) > len(a) else "tie" for a, b in zip(first, second)]
"""


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model that says words, prompts, templates, raters."""
    folder = tmp_path_factory.mktemp("files")
    models.save_pretrained(folder / "model", CONFIG, toy.talker(), toy.tokenizer())
    prompts = [{"prompt": text} for text in (" the", " good film", " bad", " it was")]
    toy.write_jsonl(folder / "prompts.jsonl", prompts)
    (folder / "toy.toml").write_text(toy.TEMPLATES)
    (folder / "raters.py").write_text(RATERS)
    return folder


@pytest.fixture
def config(files, tmp_path):
    def make(**changes):
        asked = {} if {"judge", "people"} & changes.keys() else {"rater": f"{files / 'raters.py'}:kind"}
        return HindsightConfig(**{
            "model": str(files / "model"), "output_dir": tmp_path / "out", "prompts": str(files / "prompts.jsonl"),
            "max_new_tokens": 6, "templates": str(files / "toy.toml"), "max_steps": 1, "batch_size": 4,
            "mesh": "data=1", "forget_max_ratio": 0.1,
        } | asked | changes)  # fmt: skip

    return make


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def calls(files):
    return len((files / "calls").read_text().splitlines())


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run of one step that sampled and rated."""
    folder = tmp_path_factory.mktemp("finished")
    hindsight.run(HindsightConfig(
        model=str(files / "model"), output_dir=folder, prompts=str(files / "prompts.jsonl"), max_new_tokens=6,
        templates=str(files / "toy.toml"), max_steps=1, batch_size=4, mesh="data=1", forget_max_ratio=0.1,
        rater=f"{files / 'raters.py'}:kind",
    ))  # fmt: skip
    return folder


@pytest.fixture
def again(finished, config, tmp_path):
    """The same run, in a folder of its own."""

    def make(**changes):
        if not (tmp_path / "out").exists():
            shutil.copytree(finished, tmp_path / "out")
        return config(**changes)

    return make


def test_what_was_sampled_is_rated_frozen_and_trained_on(finished, files, config):
    records = rows_of(finished / "feedback.jsonl")
    assert {record["prompt"] for record in records} <= {" the", " good film", " bad", " it was"}
    for record in records:
        assert record["ratings"] == [
            text.count(" good") + 0.1 * text.count(" fun") for text in record["responses"]
        ]  # fmt: skip
    assert len(records) > 2
    assert {path.name for path in finished.iterdir()} >= {"feedback.sealed.json", "feedback.collect", "final"}
    # The data of the run are these records and no others.
    loaded = data.load_feedback(str(finished / "feedback.jsonl"))
    chains, _ = data.build_chains(loaded, toy.tokenizer(), config().form, truncation=config().truncation)
    described = json.loads((finished / "config.json").read_text())
    assert described["tokenised data"] == chains.fingerprint()
    assert rows_of(finished / "metrics.jsonl")[-1]["step"] == 1


def test_a_run_that_goes_on_samples_and_rates_nothing(again, files, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: pytest.fail("sampled again"))
    before = calls(files)
    hindsight.run(again(max_steps=2))
    assert calls(files) == before
    assert [row["step"] for row in rows_of(tmp_path / "out" / "metrics.jsonl")] == [1, 2]


CHANGED = {
    "temperature": 0.5, "samples_per_prompt": 3, "max_new_tokens": 5, "seed": 1, "rater": "raters.py:other",
    "prompts": "other.jsonl", "model": "other",
}  # fmt: skip


def test_another_way_of_sampling_is_refused_by_its_flag(again):
    for name, value in CHANGED.items():
        with pytest.raises(InputError) as error:
            hindsight.run(again(**{name: value}))
        assert str(error.value).startswith(f"--{name.replace('_', '-')}: ")
        assert "feedback.jsonl was made with" in str(error.value)
    with pytest.raises(InputError, match=r"--rater: .* was made with '.*raters.py:kind', not None"):
        hindsight.run(again(judge="raters.py:longer"))


def test_a_frozen_file_that_was_edited_or_lost_is_refused(again, tmp_path):
    path = tmp_path / "out" / "feedback.jsonl"
    settings = again(max_steps=2)
    path.write_text(path.read_text().replace("1.0", "2.0"))
    message = f"{path}: it is not the file that was sampled and rated; take another --output-dir"
    for _ in range(2):
        with pytest.raises(InputError) as error:
            hindsight.run(settings)
        assert str(error.value) == message
        path.unlink(missing_ok=True)


def test_people_are_asked_and_their_answers_are_learnt(config, tmp_path):
    out = tmp_path / "out"
    hindsight.run(config(people="comparisons"))
    sheet = out / "feedback.collect" / "sheet.jsonl"
    questions = rows_of(sheet)
    assert len(questions) > 3
    assert not (out / "feedback.sealed.json").exists()
    assert not (out / "checkpoints").exists()
    for question in questions:
        lengths = len(question["first"]), len(question["second"])
        question["verdict"] = "tie" if lengths[0] == lengths[1] else "first" if lengths[0] > lengths[1] else "second"
    toy.write_jsonl(sheet, questions)
    hindsight.run(config(people="comparisons"))
    assert rows_of(out / "metrics.jsonl")[-1]["step"] == 1
    ranked = rows_of(out / "feedback.jsonl")
    assert ranked
    for record in ranked:
        best = int(np.argmax(record["ratings"]))
        assert len(record["responses"][best]) == max(map(len, record["responses"]))


def test_a_judge_compares(config, files, tmp_path):
    judged = config(judge=f"{files / 'raters.py'}:longer")
    assert frozen_feedback(judged, hindsight.feedback_file(judged))
    for record in rows_of(tmp_path / "out" / "feedback.jsonl"):
        best = int(np.argmax(record["ratings"]))
        assert len(record["responses"][best]) == max(map(len, record["responses"]))


def test_without_samples_there_is_nothing_to_load(config):
    with pytest.raises(InputError, match=r"feedback\.jsonl: nothing has been sampled and rated yet"):
        hindsight.load(config())


# --- samples of a model that was trained in hindsight -----------------------------------------------------------------

CONTENTS = [" the film", " good plot", " it"]


def prompts_of(**form):
    return data.FeedbackPrompts(toy.chains(**form).writer)


@functools.cache
def talker(**weights):
    """A model that says words, some more often than others."""
    tree, tokenizer = toy.talker(), toy.tokenizer()
    table = tree["embed"]["tokens"]
    for name, weight in weights.items():
        token = tokenizer.eos_token_id if name == "eos" else tokenizer.encode({"colon": ":", "good": " good"}[name])[0]
        table = table.at[token, 0].set(weight)
    return {**tree, "embed": {**tree["embed"], "tokens": table}}


def sample(contents, prompts=None, params=None, key=5, **options):
    return recipes.sample_with_feedback(
        CONFIG, talker() if params is None else params, prompts or prompts_of(), contents, jax.random.key(key),
        **{"max_new_tokens": 6} | options,
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The prompts of every call of the sampler."""
    seen, generate = [], sampling.generate
    monkeypatch.setattr(sampling, "generate", lambda *args, **more: seen.append(args[2]) or generate(*args, **more))
    return seen


def test_outputs_are_bettered_from_the_draft_before(asked):
    prompts, decode = prompts_of(), toy.tokenizer().decode
    found = sample(CONTENTS, prompts, improvements=2, samples_per_prompt=2)
    first, *rounds = asked
    assert [decode(ids) for ids in first] == [f"{content} good:" for content in CONTENTS]
    assert len(rounds) == 2
    for number, some in enumerate(rounds):
        going = [row for row, draft in enumerate(found) if len(draft.texts) > number and draft.texts[number]]
        expected = [prompts.better(CONTENTS[row // 2], found[row].texts[number]) for row in going]
        assert some == expected
    assert max(len(draft.texts) for draft in found) == 3
    text = decode(rounds[0][0])
    row = next(row for row, draft in enumerate(found) if draft.texts[0])
    assert text == f"{CONTENTS[row // 2]} bad: {found[row].texts[0]}<eos> good:"


def test_an_output_that_says_nothing_stays():
    found = sample(CONTENTS, params=talker(eos=1.15), improvements=2, samples_per_prompt=4)
    lengths = {len(draft.texts) for draft in found}
    assert lengths == {1, 2, 3}
    for draft in found:
        assert all(draft.texts[:-1])
        assert len(draft.texts) == 3 or not draft.texts[-1]


def test_drafts_do_not_depend_on_what_else_is_sampled():
    """Each prompt alone, under the seed that is its place; some end after one draft, some after more."""
    options = {"params": talker(eos=1.1), "improvements": 3, "samples_per_prompt": 2, "key": 6}
    together = sample(CONTENTS, **options)
    assert [len(draft.texts) for draft in together] == [4, 2, 1, 2, 3, 1]
    for place, content in enumerate(CONTENTS):
        assert sample([content], seeds=[place], **options) == together[2 * place : 2 * place + 2]
    assert sample(CONTENTS[::-1], seeds=[2, 1, 0], **options) == [*together[4:], *together[2:4], *together[:2]]


def test_an_output_ends_where_the_next_words_of_feedback_begin():
    """A model whose outputs have no EOS of their own, but the last."""
    prompts = prompts_of(end_of_output="last")
    found = sample(CONTENTS, prompts, talker(colon=1.15, good=1.15), samples_per_prompt=8, max_new_tokens=12)
    decode, cut = toy.tokenizer().decode, 0
    for draft in found:
        whole = decode(list(draft.tokens)).removesuffix("<eos>")
        markers = [whole.index(marker) for marker in (" good:", " bad:", " good plot:", " bad plot:", " good film:",
                                                      " bad film:") if marker in whole]  # fmt: skip
        expected = whole[: min(markers)] if markers else whole
        assert draft.texts == (expected.strip(),)
        assert draft.finished == (bool(markers) or draft.tokens[-1] == toy.tokenizer().eos_token_id)
        cut += bool(markers)
    assert 3 < cut < len(found)
    bettered = decode(prompts.better(" it", found[0].texts[0]))
    assert bettered == f" it bad: {found[0].texts[0]} good:"


def test_words_that_end_an_output_are_those_of_its_kind(monkeypatch):
    """Of a dialogue those of dialogues, whatever else the model was trained on."""
    seen, generate = [], sampling.generate
    monkeypatch.setattr(
        sampling, "generate", lambda *args, **more: seen.append(more["stop_strings"]) or generate(*args, **more)
    )
    prompts = data.FeedbackPrompts(
        data.ChainWriter(toy.tokenizer(), data.load_templates("talk"), data.ChainFormat(end_of_output="last"))
    )
    turns = [{"role": "user", "content": "it"}]
    for contents, kind in (([" it"], None), ([turns], None), ([" it"], "summary")):
        sample(contents, prompts, kind=kind, max_new_tokens=1)
    assert list(seen[0]) == prompts.stop_strings("answer")
    assert list(seen[1]) == prompts.stop_strings("dialogue")
    assert list(seen[2]) == prompts.stop_strings("summary")
    assert len({tuple(strings) for strings in seen}) == 3


def test_a_bad_output_is_asked_for_as_such_and_a_template_by_name(asked):
    sample([" it"], polarity="negative")
    sample([" it"], template="good-bad-plot", better_template="bad-good-film", improvements=1)
    first, second, third = (toy.tokenizer().decode(ids) for (ids,) in asked)
    assert (first, second) == (" it bad:", " it good plot:")
    assert third.startswith(" it bad film: ")
    assert third.endswith(" good film:")


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        ([" it"], {"template": "none"}, "no template 'none'"),
        ([" it"], {"template": "bad-good"}, "'bad-good' does not begin with the positive output"),
        ([" it", 5], {}, "prompt 1: field 'prompt'"),
        ([" it", 5], {"places": ["a", "b"]}, "b: field 'prompt'"),
        ([" it"], {"improvements": 1, "max_new_tokens": 60}, "improvements: no output leaves room"),
        ([" it"], {"temperature": -1.0}, "temperature must be finite and at least 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(contents, options, message):
    with pytest.raises(InputError, match=message):
        sample(contents, **options)


def test_a_baseline_without_feedback_is_not_asked_for_better():
    prompts = prompts_of(structures=("p",), markers="neutral")
    with pytest.raises(InputError, match="trained without feedback"):
        sample([" it"], prompts, improvements=1)
