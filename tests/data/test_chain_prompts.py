"""What a model is asked is what it was trained on: the beginning of its sequences; answers compared, and the file."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxalign.data import (
    BUILT_IN_TEMPLATES,
    ChainFormat,
    ChainWriter,
    FeedbackPrompts,
    build_chains,
    load_feedback_prompts,
    load_templates,
)
from jaxalign.data._templates import parse_templates
from jaxalign.errors import InputError
from tests.data import chain_text, toy
from tests.data.chain_text import BARE, CHAT, EARLY, GPT2, HH, LLAMA, LLAMA2

E = "<|endoftext|>"
NAMES = ("bare-good-bad", "bare-bad-good")
PAIR = {"prompt": "The film", "chosen": "It is good.", "rejected": "It was bad."}
DIALOGUE = "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant:"
TALK = {**PAIR, "prompt": DIALOGUE}
PROMPTS = {"text": PAIR, "empty": {**PAIR, "prompt": ""}, "ends white": {**PAIR, "prompt": "Title\n"}, "dialogue": TALK,
           "chat": {**PAIR, "prompt": CHAT["prompt"]}}  # fmt: skip
FORMS = {
    "plain": {},
    "last": {"end_of_output": "last"},
    "repeated": {"repeat_prompt": "all"},
    "dialogues repeated": {"repeat_prompt": "dialogues"},
    "all turns": {"mark_turns": "all"},
    "all turns, repeated": {"mark_turns": "all", "repeat_prompt": "all", "end_of_output": "last"},
    "chat template": {"dialogue": "chat_template"},
}


def of(encoder=GPT2, own=None, **form):
    form = ChainFormat(**form)
    return FeedbackPrompts(ChainWriter(encoder, load_templates(form.templates) if own is None else own, form))


def outputs_begin(encoder, example):
    """Where the record's own two outputs begin; with marked turns one more stands before the first, or before each."""
    mask = chain_text.supervised(example)
    runs = (np.flatnonzero(mask[1:] & ~mask[:-1]) + 1).tolist()
    return runs[(len(runs) - 1) // 2], runs[-1]


EVERY = [
    (name, template, kind)
    for name in BUILT_IN_TEMPLATES
    for template in load_templates(name).pairs
    for kind in template.kinds
    if not template.auxiliary
]


@pytest.mark.parametrize("encoder", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("templates", "template", "kind"), EVERY, ids=lambda v: getattr(v, "name", v))
def test_every_template_asks_as_it_was_trained(templates, template, kind, encoder):
    first = template.order[0]
    form = ChainFormat(structures=("pn" if first == "positive" else "np",), templates=templates,
                       template_names=(template.name,))  # fmt: skip
    for prompt in (PAIR["prompt"], DIALOGUE):
        record = {**PAIR, "prompt": prompt, "kind": kind}
        chains, _ = build_chains([record], encoder, form)
        example, prompts = chains.draw(0, 0), FeedbackPrompts(chains.writer)
        one, two = outputs_begin(encoder, example)
        trained = example.tokens.tolist()
        for name in (None, template.name):
            assert prompts.tokens(prompt, first, template=name, kind=kind) == trained[:one]
        other = "negative" if first == "positive" else "positive"
        with pytest.raises(InputError, match=f"^template '{template.name}' does not begin with the {other} output$"):
            prompts.tokens(prompt, other, template=template.name)
        if first == "negative":
            assert prompts.better(prompt, PAIR["rejected"], kind=kind) == trained[:two]
            assert prompts.better(prompt, f" {PAIR['rejected']}\n", template=template.name, kind=kind) == trained[:two]


@pytest.mark.parametrize("encoder", [GPT2, LLAMA, LLAMA2], ids=["gpt2", "llama", "llama2"])
@pytest.mark.parametrize(("name", "form"), list(itertools.product(PROMPTS, FORMS)))
def test_every_form_asks_as_it_was_trained(name, form, encoder):
    record = PROMPTS[name]
    if form == "chat template" and encoder is not GPT2 and name == "chat":
        record = {**record, "prompt": record["prompt"][1:]}  # the Llama template has no system turn
    fields = {**FORMS[form], "template_names": NAMES}
    for structure, polarity in (("pn", "positive"), ("np", "negative")):
        chains, _ = build_chains([record], encoder, ChainFormat(structures=(structure,), **fields))
        example, prompts = chains.draw(0, 0), FeedbackPrompts(chains.writer)
        one, two = outputs_begin(encoder, example)
        trained = example.tokens.tolist()
        assert prompts.tokens(record["prompt"], polarity) == trained[:one]
        if structure == "np":
            assert prompts.better(record["prompt"], record["rejected"]) == trained[:two]


def test_prompts_as_text():
    prompts = of(template_names=NAMES)
    assert GPT2.decode(prompts.tokens("The film")) == "The film\n\nGood:"
    assert GPT2.decode(prompts.tokens("The film", "negative")) == "The film\n\nBad:"
    assert GPT2.decode(prompts.better("The film", "It was bad.")) == f"The film\n\nBad: It was bad.{E}\n\nGood:"
    asked = of(template_names=NAMES, end_of_output="last").better("The film", "It was bad.")
    assert GPT2.decode(asked) == "The film\n\nBad: It was bad.\n\nGood:"
    assert GPT2.decode(prompts.tokens("")) == f"{E}Good:"
    assert BARE.decode(of(BARE, template_names=NAMES).tokens("")) == "Good:"
    # An output that wrote its EOS itself: one.
    assert prompts.better("The film", f"It was bad.{E}") == prompts.better("The film", "It was bad.")


def test_the_kind_decides_the_words():
    prompts = of(templates="talk")
    said = {kind: GPT2.decode(prompts.tokens("The film", kind=kind)) for kind in ("summary", "answer", "dialogue")}
    assert said == {
        "summary": "The film\n\nA good summary:",
        "answer": "The film\n\nA good answer is",
        "dialogue": "The film\n\nYou are a helpful assistant:",
    }
    assert prompts.tokens("The film") == prompts.tokens("The film", kind="answer")
    assert of(templates="talk", kind="summary").tokens("The film") == prompts.tokens("The film", kind="summary")
    assert GPT2.decode(prompts.tokens(DIALOGUE)).endswith("User: what is good?\n\nYou are a helpful assistant:")
    assert GPT2.decode(prompts.tokens("The film", template="good-worse-summary")).endswith("\n\nA good summary:")
    own = of(own=parse_templates({"pair": [{"name": "a", "text": "Good: {positive} bad: {negative}"}]}, "own"))
    with pytest.raises(InputError, match=r"^templates own: none for 'answer' begins with the negative output$"):
        own.tokens("The film", "negative")


def test_models_without_feedback_are_asked_in_neutral_words():
    for polarity in ("positive", "negative"):
        prompts = of(structures=("p",), markers="neutral")
        assert GPT2.decode(prompts.tokens("The film", polarity)) == "The film\n\nAn answer:"
        assert GPT2.decode(prompts.tokens("The film", polarity, kind="summary")) == "The film\n\nA summary:"
        bare = of(structures=("p",), markers="none")
        assert bare.tokens("The film", polarity) == GPT2.first("The film")
        assert GPT2.decode(bare.tokens(DIALOGUE, polarity)).endswith("what is good?\n\nAssistant:")
        assert bare.stop_strings() == prompts.stop_strings() == []
    for form in ({"markers": "neutral"}, {"markers": "none"}):
        prompts = of(structures=("p",), **form)
        for record in (PAIR, TALK):
            chains, _ = build_chains([record], GPT2, prompts.writer.form)
            trained = chains.draw(0, 0).tokens.tolist()
            assert trained[: len(prompts.tokens(record["prompt"]))] == prompts.tokens(record["prompt"])
        with pytest.raises(
            InputError, match=r"^this model was trained without feedback: it cannot be asked for better"
        ):
            prompts.better("The film", "bad")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "prompt 3: missing field 'prompt'"),
        (5, "prompt 3: field 'prompt': expected a string or a list of messages, got int"),
        ([], "prompt 3: field 'prompt': empty list of messages"),
        (HH["chosen"], "prompt 3: field 'prompt': its last turn is the assistant's; an output would answer itself"),
    ],
)
def test_bad_prompts(prompt, message):
    with pytest.raises(InputError) as error:
        of().tokens(prompt, place="prompt 3")
    assert str(error.value) == message
    with pytest.raises(InputError, match=r"^prompt 3: "):
        of().better(prompt, "a", place="prompt 3")


def test_other_refusals():
    with pytest.raises(InputError, match=r"^prompt: there is no output to be bettered$"):
        of().better("The film", " \n")
    with pytest.raises(InputError, match=r"^templates paper: no template 'god'; there are statement-good-bad-summary,"):
        of().tokens("The film", template="god")
    with pytest.raises(InputError, match=r"^template 'bare-bad-good' does not begin with the positive output$"):
        of().tokens("The film", template="bare-bad-good")
    with pytest.raises(
        InputError, match=r"^template 'bare-good-bad' begins with the positive output, not the negative"
    ):
        of().better("The film", "bad", template="bare-good-bad")
    with pytest.raises(InputError, match=r"^prompt: field 'kind': expected one of answer, summary, dialogue"):
        of().tokens("The film", kind="poem")
    with pytest.raises(
        InputError, match=r"^prompt: field 'prompt' is empty and the tokenizer has no BOS to start from"
    ):
        of(BARE, structures=("p",), markers="none").tokens("")


COMPARED = [
    (name, form)
    for name, form in itertools.product([*PROMPTS, "hh", "early", "turn"], FORMS)
    if form != "chat template" or name not in ("early", "turn")  # which part before their last turn
]


def answers_of(example):
    """The answers of a comparison: tokens with the prompt before them, and what is learnt."""
    prompt = example.tokens[example.branch == 0].tolist()
    for slot in range(example.sequences):
        own = example.branch == slot + 1
        yield prompt + example.tokens[own].tolist(), example.targets[example.target_sequence == slot].tolist()


@pytest.mark.parametrize("encoder", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("name", "form"), COMPARED)
def test_compared_answers_are_the_training_sequences_of_a_good_output(name, form, encoder):
    turn = {**HH, "rejected": HH["rejected"].replace("yes", "no")}
    record = {"hh": HH, "early": EARLY, "turn": turn, **PROMPTS}[name]
    if form == "chat template" and name == "chat":
        record = {**record, "prompt": record["prompt"][1:]}  # the Llama template has no system turn
    fields = {**FORMS[form], "template_names": NAMES}
    prompts = of(encoder, structures=("pn",), **fields)
    fields.pop("repeat_prompt", None)  # a good output alone is the beginning of every chain
    form = ChainFormat(structures=("p",), **fields)
    chains, _ = build_chains([record], encoder, form)
    example = prompts.comparison(record, record_id=5)
    assert example.record_id == 5
    assert example.pairs.tolist() == [[0, 1]]
    assert example.sequences == 2
    swapped = {**record, "chosen": record["rejected"], "rejected": record["chosen"]}
    trained = [chains.draw(0, 0), build_chains([swapped], encoder, form)[0].draw(0, 0)]
    for (tokens, targets), sequence in zip(answers_of(example), trained, strict=True):
        assert tokens == sequence.tokens.tolist()
        assert targets == sequence.targets.tolist()[-len(targets) :]
        assert targets[-1] == prompts.writer.end
    if "early" not in name and "turn" not in name:
        prompt = example.tokens[example.branch == 0].tolist()
        assert prompt == prompts.tokens(record.get("prompt", DIALOGUE))


def test_comparisons_token_by_token():
    prompts = of(LLAMA, template_names=NAMES)
    record = {"prompt": "The film", "responses": ["is good", "was", "is"], "ratings": [2, 1, 2]}
    example = prompts.comparison({**record, "finished": [True, False, True]})
    assert toy.show(LLAMA, example) == ("<s> ▁The ▁film \\n\\n G o od :\n[▁is] [▁good] [</s>]\n[▁was]\n[▁is] [</s>]")
    assert example.pairs.tolist() == [[0, 1], [2, 1]]
    neutral = of(LLAMA, structures=("p",), markers="none").comparison(record)
    assert toy.show(LLAMA, neutral) == "<s> ▁The ▁film\n[▁is] [▁good] [</s>]\n[▁was] [</s>]\n[▁is] [</s>]"
    early = of(template_names=NAMES).comparison(EARLY)
    parts = [GPT2.decode(early.tokens[early.branch == branch]) for branch in range(3)]
    assert parts == [
        "User: hello\n\nAssistant: yes",
        f"\n\nUser: what is good?\n\nGood: A good film.{E}",
        f"\n\nUser: why?\n\nGood: A bad story.{E}",
    ]
    assert [GPT2.decode(early.targets[early.target_sequence == slot]) for slot in (0, 1)] == [
        f" A good film.{E}",
        f" A bad story.{E}",
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "needs at least two rated outputs"),
        ({"prompt": "a", "responses": ["b", "c"], "feedback": ["d", "e"]}, "needs at least two rated outputs"),
        ({"prompt": "a", "responses": ["b", "c"], "ratings": [1, 1]}, "field 'ratings': all are equal, none is better"),
        ({"prompt": "a"}, "no feedback: it needs"),
        ({**PAIR, "chosen": 4}, "field 'chosen': expected a string"),
    ],
)
def test_records_that_cannot_be_compared(record, message):
    with pytest.raises(InputError, match=f"^a.jsonl: row 2: {message}"):
        of().comparison(record, place="a.jsonl: row 2")


FILES = [
    ({}, None),
    ({"templates": "released", "structures": ("pn=2", "aux"), "kind": "summary", "end_of_output": "last"}, None),
    ({"structures": ("p",), "markers": "neutral", "templates": "talk"}, None),
    ({"dialogue": "chat_template", "template_names": NAMES}, None),
    (
        {"templates": "own.toml", "structures": ("pn",)},
        {
            "between": "",
            "user": "Q:",
            "neutral": {"answer": "É:"},
            "pair": [{"name": "a", "text": "Not bad: {positive}, worse: {negative}", "check_words": False}],
        },
    ),
    (
        {"structures": ("chain",), "chain_length": 2, "chain_order": "rising"},
        {"graded": [{"name": "g", "first": "{Grade}:", "following": "{grade}:", "grades": ["a", "b"]}]},
    ),
]


@pytest.mark.parametrize(("fields", "own"), FILES, ids=range(len(FILES)))
def test_the_file_keeps_form_and_templates(tmp_path, fields, own):
    templates = None if own is None else parse_templates(own, "own.toml")
    prompts = of(own=templates, **fields)
    prompts.save(tmp_path)
    again = load_feedback_prompts(tmp_path, toy.byte_level())
    assert again.writer.form == prompts.writer.form
    assert again.writer.templates == prompts.writer.templates
    assert again.writer.templates.fingerprint() == prompts.writer.templates.fingerprint()
    again.save(tmp_path)
    assert load_feedback_prompts(tmp_path, GPT2).writer.form == prompts.writer.form
    if not own or "pair" in own:
        assert again.tokens("The film") == prompts.tokens("The film")
        assert again.tokens(DIALOGUE) == prompts.tokens(DIALOGUE)


def test_the_file_keeps_the_kind_that_texts_were_trained_on(tmp_path):
    prompts = of()
    for kinds, expected in (((), "answer"), ({"summary"}, "summary"), ({"answer", "summary"}, "answer")):
        prompts.save(tmp_path, kinds=kinds)
        again = load_feedback_prompts(tmp_path, GPT2)
        assert again.writer.form == ChainFormat(kind=expected)
        assert again.tokens("The film") == prompts.tokens("The film", kind=expected)
        assert again.tokens(DIALOGUE) == prompts.tokens(DIALOGUE)


def test_files_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "hindsight.json"

    def refusal(**changes):
        of().save(tmp_path)
        held = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in {**held, **changes}.items() if v != "gone"}))
        with pytest.raises(InputError) as error:
            load_feedback_prompts(tmp_path, GPT2)
        assert "\n" not in str(error.value)
        return str(error.value)

    form, templates = dataclasses.asdict(ChainFormat()), load_templates("paper").as_dict()
    with pytest.raises(InputError) as error:
        load_feedback_prompts(tmp_path, GPT2)
    assert str(error.value) == (
        f"{tmp_path}: no hindsight.json: this model was not trained by jaxalign hindsight; it has no words of feedback"
    )
    for changes in (
        {"format": "gone"},
        {"format": None},
        {"format": [1]},
        {"format": {**form, "other": 1}},
        {"format": {**form, "chain_length": "many"}},
        {"templates": "gone"},
        {"templates_name": "gone"},
        {"templates": None},
    ):
        assert refusal(**changes).startswith(f"{path}: cannot be read (")
    assert refusal(format={**form, "repeat_prompt": True}).startswith(f"{path}: --repeat-prompt: expected one of none,")
    assert refusal(format={**form, "structures": ["pp"]}).startswith(f"{path}: --structures: 'pp': expected")
    assert refusal(templates={**templates, "pair": [1]}).startswith(f"{path}: paper: field 'pair': expected tables")
    assert refusal(templates={"user": "Q:"}).startswith(f"{path}: paper: it has no template")
    for text in ("", "[]", "{", "3"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"hindsight\.json: cannot be read \("):
            load_feedback_prompts(tmp_path, GPT2)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"hindsight\.json: cannot be read \(UnicodeDecodeError"):
        load_feedback_prompts(tmp_path, GPT2)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=r"hindsight\.json: cannot be read \(IsADirectoryError"):
        load_feedback_prompts(tmp_path, GPT2)
