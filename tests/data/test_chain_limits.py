"""Chains within limits, by named policies, and what is refused: settings by their flags, rows by place and field."""

import re

import pytest

from jaxalign.data import ChainFormat, Counters, PairTemplate, Records, TemplateSet, Truncation, build_chains
from jaxalign.data._templates import parse_templates
from jaxalign.errors import InputError
from tests.data import chain_text
from tests.data.chain_text import BARE, EARLY, GPT2, HH, LLAMA

E = "<|endoftext|>"
NAMES = ("bare-good-bad", "bare-bad-good")
FORM = ChainFormat(structures=("pn",), template_names=NAMES)
PAIR = {"prompt": "The film", "chosen": "It is good.", "rejected": "It was bad."}
WHOLE = f"The film\n\nGood:[ It is good.{E}]\n\nBad:[ It was bad.{E}]"
LONG = {**PAIR, "prompt": "again and again and again and again and again and again"}


def built(records, truncation, *, encoder=GPT2, form=FORM, **options):
    chains, counters = build_chains(records, encoder, form, truncation=truncation, **options)
    texts = [chain_text.text(encoder, chains.draw(index, 0)) for index in range(len(chains))]
    assert all(len(chains.draw(index, 0).tokens) <= (truncation.max_length or 99) for index in range(len(chains)))
    return texts, counters.as_dict()


def refused(records, truncation, **options):
    with pytest.raises(InputError) as error:
        built(records, truncation, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_chain_over_the_limit_loses_its_end():
    chains, _ = build_chains([PAIR], GPT2, FORM)
    seen = []
    for limit in range(9, len(chains.draw(0, 0).tokens) + 1):
        (text,), counters = built([PAIR], Truncation(limit))
        assert WHOLE.startswith(text.removesuffix("]"))
        assert counters["truncated: chain: cut"] == 1  # the longest draw may be
        seen.append(text)
    assert "truncated: chain: cut" not in built([PAIR], Truncation(int(chains.sizes.tokens[0])))[1]
    assert seen[-1] == WHOLE
    assert seen[-2] == WHOLE.removesuffix(E + "]") + "]"  # an output that is cut has no EOS, if only by that
    assert f"The film\n\nGood:[ It is good.{E}]\n\nBad:" in seen
    assert "The film\n\nGood:[ It]" in seen
    assert seen[0].count("[") == 1


def test_chains_over_the_limit_are_dropped_or_refused():
    records = [PAIR, {**PAIR, "chosen": "again " * 60}]
    assert built(records, Truncation(60, completion="drop")) == (
        [WHOLE],
        {"rows_read": 2, "examples": 1, "skipped: chain over the limit": 1},
    )
    message = refused(records, Truncation(60, completion="error"))
    assert re.fullmatch(
        r"row 2: a chain of its prompt, feedback and outputs has up to \d+ tokens, more than max_length 60; raise it "
        r"or choose completion truncation 'cut' or 'drop'",
        message,
    )
    assert built(records, Truncation(60, completion="error"), on_bad_row="skip") == (
        [WHOLE],
        {"rows_read": 2, "examples": 1, "skipped: unusable row": 1},
    )
    assert refused(records[1:], Truncation(60, completion="drop")) == (
        "row 1: nothing to train on (rows_read 1, examples 0, skipped: chain over the limit 1)"
    )


def test_templates_that_are_never_drawn_take_no_room():
    """A chain in the few words of the template that was named is not dropped for the many words of others."""
    size = len(build_chains([PAIR], GPT2, FORM)[0].draw(0, 0).tokens)
    assert built([PAIR], Truncation(size + 2, completion="drop"))[0] == [WHOLE]
    assert refused([PAIR], Truncation(size + 2, completion="drop"), form=ChainFormat(structures=("pn",)))


def test_prompts_over_their_limit():
    records = [PAIR, LONG]
    ids = GPT2.first(LONG["prompt"])
    texts, counters = built(records, Truncation(max_prompt_length=5, prompt="keep_end"))
    assert texts == [WHOLE, WHOLE.replace("The film", GPT2.decode(ids[-5:]))]
    assert counters == {"rows_read": 2, "examples": 2, "truncated: prompt: keep_end": 1}
    assert built(records, Truncation(max_prompt_length=5, prompt="drop")) == (
        [WHOLE],
        {"rows_read": 2, "examples": 1, "skipped: prompt over the limit": 1},
    )
    message = refused(records, Truncation(max_prompt_length=5))
    assert message.startswith(f"row 2: field 'prompt' has {len(ids)} tokens, room is for 5 (max_prompt_length 5)")
    assert built(records, Truncation(max_prompt_length=5), on_bad_row="skip") == (
        [WHOLE],
        {"rows_read": 2, "examples": 1, "skipped: unusable row": 1},
    )


def test_a_cut_prompt_keeps_its_bos_and_is_repeated_as_it_is():
    eos = "</s>"
    form = ChainFormat(structures=("pn",), template_names=NAMES, repeat_prompt="all")
    truncation = Truncation(max_prompt_length=5, prompt="keep_end")
    ids = LLAMA.first(LONG["prompt"])
    chains, _ = build_chains([LONG], LLAMA, form, truncation=truncation)
    example = chains.draw(0, 0)
    assert example.tokens[:5].tolist() == [LLAMA.bos, *ids[-4:]]
    prompt = LLAMA.decode(ids[-4:])
    again = LLAMA.decode_following(LLAMA.following("\n\n" + LONG["prompt"])[-5:])
    assert chain_text.text(LLAMA, example) == (
        f"{prompt}\n\nGood:[ It is good.{eos}]{again}\n\nBad:[ It was bad.{eos}]"
    )
    assert again.endswith("again")
    assert example.tokens.tolist().count(LLAMA.bos) == 1


@pytest.mark.parametrize("encoder", [GPT2, LLAMA, BARE], ids=["gpt2", "llama", "bare"])
def test_a_prompt_of_marked_turns_keeps_whole_ones_and_the_end_of_what_a_person_said(encoder):
    form = ChainFormat(structures=("pn",), template_names=NAMES, mark_turns="all")
    eos = encoder.decode([encoder.eos])
    begin = 0 if encoder.bos is None else 1
    hello, asked = encoder.first("User: hello")[begin:], encoder.following("\n\nUser: what is good?")
    turn = len(encoder.following(" yes")) + 1
    for limit in range(1 + begin, 60):
        room = limit - begin
        if room < len(asked):
            said = encoder.decode(asked[-room:])
        else:
            said = encoder.decode_following(asked)
            if room >= len(asked) + turn:
                end = hello[-left:] if (left := room - len(asked) - turn) else []
                said = encoder.decode(end) + ("\n\n" if end else "") + f"Good:[ yes{eos}]" + said
            else:
                said = encoder.decode(asked)
        chains, counters = build_chains(
            [HH], encoder, form, truncation=Truncation(max_prompt_length=limit, prompt="keep_end")
        )
        example = chains.draw(0, 0)
        assert chain_text.text(encoder, example) == f"{said}\n\nGood:[ A good film.{eos}]\n\nBad:[ A bad story.{eos}]"
        assert (example.tokens[0] == encoder.bos) == (encoder.bos is not None)
        assert len(example.tokens) <= chains.sizes.tokens[0]
        assert counters.truncated["prompt: keep_end"] == (room < len(hello) + turn + len(asked))
    assert not counters.truncated


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, FORM),
        (
            {"responses": ["a", "b", "c"], "ratings": [1, 2, 3], "chosen": None, "rejected": None},
            ChainFormat(structures=("chain",), chain_order="falling", templates="talk"),
        ),
        ({"prompt": [{"role": "user", "content": "again and " * 40}]}, FORM),
    ],
    ids=["pair", "three", "dialogue"],
)
def test_a_prompt_gives_way_to_the_whole_chain_behind_it(fields, form):
    record = {**PAIR, "prompt": "again and " * 40, **fields}
    chains, _ = build_chains([record], GPT2, form)
    whole, most = chains.draw(0, 0).tokens.tolist(), int(chains.sizes.tokens[0])
    said = record["prompt"] if isinstance(record["prompt"], str) else f"User: {'again and ' * 40}".strip()
    prompt = len(GPT2.first(said))
    behind = most - prompt  # of outputs and words, whatever is drawn
    seen = set()
    for limit in (*range(36, most, 3), most):
        kept = min(max(limit // 2, limit - behind), prompt)
        chains, counters = build_chains([record], GPT2, form, truncation=Truncation(limit, prompt="keep_end"))
        expected = whole[prompt - kept :]
        assert chains.draw(0, 0).tokens.tolist() == expected[:limit]
        assert counters.truncated["prompt: keep_end"] == (kept < prompt)
        assert counters.truncated["chain: cut"] == (kept + behind > limit)
        seen.add((kept < prompt, kept + behind > limit))
        if kept < prompt:
            message = refused([record], Truncation(limit), form=form)
            assert message.startswith(f"row 1: field 'prompt' has {prompt} tokens, room is for {kept} beside")
            message = refused([record], Truncation(limit, prompt="drop"), form=form)
            assert message.endswith("skipped: prompt over the limit 1)")
    assert seen == {(True, True), (True, False), (False, False)}


def test_a_prompt_that_is_repeated_gives_way_down_to_half():
    form = ChainFormat(structures=("pn",), template_names=NAMES, repeat_prompt="all")
    prompt = GPT2.first(LONG["prompt"])
    most = int(build_chains([LONG], GPT2, form)[0].sizes.tokens[0])
    for limit in range(16, most):
        chains, counters = build_chains([LONG], GPT2, form, truncation=Truncation(limit, prompt="keep_end"))
        kept = min(limit // 2, len(prompt))
        assert chains.draw(0, 0).tokens[:kept].tolist() == prompt[-kept:]
        assert chains.draw(0, 0).tokens[kept] != prompt[-1]
        assert counters.truncated["prompt: keep_end"] == (kept < len(prompt))


def test_no_room_for_an_output():
    short = {"prompt": "The", "completion": "It is good.", "label": True}
    place = "its prompt and the words of feedback leave no room for an output"
    assert refused([short], Truncation(5)) == f"row 1: {place} (5 tokens)"
    assert built([short, short], Truncation(40))[1] == {"rows_read": 2, "examples": 2}
    # Feedback of its own counts, and what a person says before an output does.
    own = {"prompt": "The", "completion": "good", "feedback": "again " * 20}
    assert refused([own], Truncation(15)) == f"row 1: {place} (15 tokens)"
    prompt = len(GPT2.first("User: hello\n\nAssistant: yes"))
    said = len(GPT2.following("\n\nUser: what is good?"))
    limit = prompt + said + len(GPT2.following("\n\nGood:"))
    assert refused([EARLY], Truncation(limit, prompt)) == f"row 1: {place} ({limit} tokens)"
    assert built([EARLY], Truncation(limit + 2, prompt))[0][0].endswith("?\n\nGood:[ A]")
    assert built([short, own], Truncation(15), on_bad_row="skip")[1]["skipped: unusable row"] == 1
    # Of outputs that are sequences of their own, what is said in the others takes no room.
    talk = {**EARLY, "rejected": EARLY["rejected"].replace("why?", "why? " * 20)}
    each = ChainFormat(structures=("p", "n"), template_names=NAMES, emit="each")
    texts, counters = built([talk], Truncation(limit + 2, prompt), form=each, on_bad_row="skip")
    assert [text.endswith("?\n\nGood:[ A]") for text in texts] == [True]
    assert counters["skipped: unusable row"] == 1


FORMATS = [
    ({"structures": ()}, "--structures: name at least one"),
    (
        {"structures": ("pn", "pp")},
        "--structures: 'pp': expected p, n, pn, np, aux, chain, each with or without =WEIGHT",
    ),
    ({"structures": ("pn=0",)}, "--structures: 'pn=0': expected p, n, pn, np, aux, chain"),
    ({"structures": ("pn=x",)}, "--structures: 'pn=x': expected"),
    ({"structures": ("pn=inf",)}, "--structures: 'pn=inf': expected"),
    ({"structures": ("pn=nan",)}, "--structures: 'pn=nan': expected"),
    ({"structures": ("pn=-1",)}, "--structures: 'pn=-1': expected"),
    ({"structures": ("pn=",)}, "--structures: 'pn=': expected"),
    ({"structures": ("pn", "pn=2")}, "--structures: pn twice"),
    ({"chain_length": 1}, "--chain-length: must be at least 2, is 1"),
    ({"chain_length": 3}, "--chain-length: --structures names no chain"),
    ({"chain_order": "falling"}, "--chain-order: --structures names no chain"),
    ({"markers": "neutral"}, "--structures: np puts outputs of different quality behind one another, which makes no"),
    ({"markers": "none", "structures": ("p", "chain")}, "--structures: chain puts outputs of different quality"),
    (
        {"markers": "neutral", "structures": ("p",), "learn_markers": True},
        "--learn-markers: there is no feedback with --markers neutral",
    ),
    (
        {"markers": "none", "structures": ("p",), "template_names": ("a",)},
        "--template-names: no template is read with --markers none",
    ),
    ({"dialogue": "chat_template", "mark_turns": "all"}, "--mark-turns: only dialogues written as words (--dialogue)"),
    ({"dialogue": "chat_template", "repeat_prompt": "all"}, "--repeat-prompt: only dialogues written as words"),
    ({"dialogue": "chat_template", "repeat_prompt": "dialogues"}, "--repeat-prompt: only dialogues written as words"),
    ({"repeat_prompt": True}, "--repeat-prompt: expected one of none, dialogues, all, got True"),
    ({"repeat_prompt": "all", "structures": ("p", "n")}, "--repeat-prompt: --structures names none with a second"),
    ({"repeat_prompt": "dialogues", "structures": ("n=2",)}, "--repeat-prompt: --structures names none with a second"),
    (
        {"emit": "each", "structures": ("p=5", "n")},
        "--structures: with --emit each every structure is used once; weights draw nothing",
    ),
    ({"emit": "each", "structures": ("pn", "np=1")}, "--structures: with --emit each every structure is used once"),
    ({"emit": "all"}, "--emit: expected one of one, each, got 'all'"),
    ({"markers": "nuetral"}, "--markers: expected one of feedback, neutral, none, got 'nuetral'"),
    ({"kind": "poem"}, "--kind: expected one of answer, summary, dialogue, got 'poem'"),
    ({"chain_order": "up"}, "--chain-order: expected one of any, falling, rising, got 'up'"),
    ({"dialogue": "chat"}, "--dialogue: expected one of words, chat_template, got 'chat'"),
    ({"mark_turns": "last"}, "--mark-turns: expected one of differing, all, got 'last'"),
    ({"end_of_output": []}, "--end-of-output: expected one of each, last, got []"),
]


@pytest.mark.parametrize(("fields", "message"), FORMATS, ids=range(len(FORMATS)))
def test_settings_that_make_no_sense_name_their_flag(fields, message):
    with pytest.raises(InputError) as error:
        ChainFormat(**fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_weights_of_structures():
    assert ChainFormat().weights == {"pn": 1.0, "np": 1.0}
    assert ChainFormat(structures=("p=0.5", "aux", "chain=3"), chain_length=2).weights == {
        "p": 0.5,
        "aux": 1,
        "chain": 3,
    }


@pytest.mark.parametrize(
    ("form", "record", "message"),
    [
        (ChainFormat(templates="papr"), PAIR, "templates: papr: no such file, and none of the built-in names"),
        (
            ChainFormat(templates="talk", template_names=("good",)),
            PAIR,
            "--template-names: talk has no template 'good'; it has: bad-good-answer, good-bad-answer, good-worse-",
        ),
        (ChainFormat(template_names=("nothing",)), PAIR, "--template-names: paper has no template 'nothing'; it has: "),
        (ChainFormat(template_names=("nothing",)), 5, "--template-names: paper has no template 'nothing'; it has: "),
        (
            ChainFormat(templates="talk", structures=("aux",)),
            PAIR,
            "templates talk: none serves the structure 'aux' for",
        ),
        (
            ChainFormat(template_names=("bare-good-bad",)),
            PAIR,
            "templates paper: none serves the structure 'np' for 'answer' among --template-names",
        ),
        (
            ChainFormat(template_names=("bare-good-bad",)),
            {"prompt": "a", "completion": "b", "label": False},
            "templates paper: none serves the structure 'n' for 'answer' among --template-names",
        ),
        (
            ChainFormat(structures=("chain",), template_names=("graded-summary",)),
            PAIR,
            "templates paper: none serves the structure 'chain' for 'answer' among --template-names",
        ),
        (
            ChainFormat(structures=("chain",), chain_length=6),
            {"prompt": "a", "responses": list("abcdef"), "ratings": [1, 2, 3, 4, 5, 6]},
            "templates paper: 'graded-answer' has 5 grades for chains of 6 different ratings; give it more, or "
            "--chain-length 5",
        ),
        (
            ChainFormat(dialogue="chat_template"),
            EARLY,
            "row 1: the outputs part before their last turn; only dialogues written as words (--dialogue words) can",
        ),
    ],
)
def test_templates_that_do_not_serve(form, record, message):
    """Whatever the limits are, and whatever happens to bad rows: the settings are of none."""
    for limits in (Truncation(), Truncation(40), Truncation(40, 5, prompt="drop", completion="drop")):
        for on_bad_row in ("error", "error" if message.startswith("row") else "skip"):
            assert refused([record], limits, form=form, on_bad_row=on_bad_row).startswith(message)


def test_a_chain_of_ties_needs_as_many_grades_as_ratings():
    record = {"prompt": "a", "responses": list("abcdef"), "ratings": [1, 1, 1, 2, 2, 3]}
    two = parse_templates(
        {"graded": [{"name": "g", "first": "{Grade}:", "following": "{Grade}:", "grades": ["bad", "good"]}]}, "two"
    )
    form = ChainFormat(structures=("chain",), chain_length=6)
    assert len(build_chains([record], GPT2, form)[0].chain(0, 0)) == 6
    with pytest.raises(InputError, match=r"^templates two: 'g' has 2 grades for chains of 3 different ratings"):
        build_chains([record], GPT2, form, templates=two)
    build_chains([record], GPT2, ChainFormat(structures=("chain",), chain_length=2), templates=two)


def test_neutral_words_that_are_missing():
    templates = TemplateSet("own", (PairTemplate("a", "Good: {positive} Bad: {negative}"),))
    form = ChainFormat(structures=("p",), markers="neutral")
    half = {"prompt": "a", "responses": ["b", "c"], "feedback": ["d", None]}
    message = "own: field 'neutral': no word for 'answer'; --markers neutral needs one"
    for limits, on_bad_row in ((Truncation(), "error"), (Truncation(40), "error"), (Truncation(40), "skip")):
        options = {"templates": templates, "on_bad_row": on_bad_row}
        assert refused([PAIR], limits, form=form, **options) == message
        assert refused([half], limits, form=None, **options) == message
    own = {**half, "feedback": ["d", "e"]}
    chains, _ = build_chains([own], GPT2, templates=templates)
    assert chain_text.text(GPT2, chains.draw(0, 0)) == f"a\n\nd[ b{E}]\n\ne[ c{E}]"
    assert chains.sizes.tokens[0] >= len(chains.draw(0, 0).tokens)
    assert chains.fingerprint()


def test_a_source_without_a_usable_record():
    tie = {"prompt": "a", "responses": ["b", "c"], "ratings": [1, 1]}
    with pytest.raises(InputError, match=r"^source 2 of the mixture: no record of it can be used \(rows_read 2"):
        build_chains([PAIR, tie], GPT2, sources=[0, 1], weights=[1, 1])
    with pytest.raises(InputError, match=r"^weights of a mixture must be finite and above 0, are \[1, -1\]"):
        build_chains([PAIR, PAIR], GPT2, sources=[0, 1], weights=[1, -1])
    with pytest.raises(InputError, match=r"^row 1: nothing to train on"):
        build_chains([], GPT2)


def test_places_and_counters_are_the_records():
    counters = Counters(rows_read=7)
    counters.skipped["tie"] = 3
    records = Records([PAIR, {**PAIR, "chosen": 5}], ["a.jsonl: row 3", "a.jsonl: row 6"], counters)
    assert refused(records, Truncation()).startswith("a.jsonl: row 6: field 'chosen': expected a string")
    _, found = built(records, Truncation(), on_bad_row="skip")
    assert found == {"rows_read": 7, "examples": 1, "skipped: tie": 3, "skipped: unusable row": 1}
    assert counters.skipped == {"tie": 3}
