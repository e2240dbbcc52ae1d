"""Goldens of chains: decoded text with what is supervised in brackets, for every template and every setting."""

import pytest

from jaxalign.data import (
    BUILT_IN_TEMPLATES,
    ChainFormat,
    Encoder,
    build_chains,
    load_templates,
    response_example,
)
from jaxalign.data._templates import parse_templates
from jaxalign.errors import InputError
from tests.data import chain_text, toy
from tests.data.chain_text import CHAT, GPT2, HH, LLAMA, drawn, filled

E = "<|endoftext|>"
PAIR = {"prompt": "The film", "chosen": "It is good.", "rejected": "It was bad."}
FOUR = {"prompt": "The film", "responses": ["one", "two", "three", "four"], "ratings": [1, 7.5, 2, 9]}
BARE = {"template_names": ("bare-good-bad", "bare-bad-good")}

EVERY = [
    (name, template.name, kind)
    for name in BUILT_IN_TEMPLATES
    for template in load_templates(name).pairs
    for kind in template.kinds
]


@pytest.mark.parametrize("encoder", list(chain_text.ENCODERS.values()), ids=list(chain_text.ENCODERS))
@pytest.mark.parametrize(("templates", "name", "kind"), EVERY)
def test_every_pair_template(templates, name, kind, encoder):
    template = load_templates(templates).find(name)
    structure = "aux" if template.auxiliary else "pn"
    if not template.auxiliary and template.text.index("{negative}") < template.text.index("{positive}"):
        structure = "np"
    found = drawn([{**PAIR, "kind": kind}], encoder, structures=structure, templates=templates, template_names=name)
    eos = encoder.decode([encoder.eos])
    said = filled(template.text, eos, positive="It is good.", negative="It was bad.")
    assert found == [f"The film\n\n{said}"]
    if structure != "aux":  # alone: the first words of one that begins with that output
        found = drawn([{**PAIR, "kind": kind}], encoder, structures=structure[0], templates=templates,
                      template_names=name)  # fmt: skip
        assert found == [f"The film\n\n{said[: said.index(']') + 1]}"]


@pytest.mark.parametrize(
    ("templates", "name", "kind"),
    [(name, graded.name, kind) for name in BUILT_IN_TEMPLATES for graded in load_templates(name).graded
     for kind in graded.kinds],
)  # fmt: skip
def test_every_graded_template(templates, name, kind):
    (graded,) = [one for one in load_templates(templates).graded if one.name == name]
    for order, outputs in (("falling", ["four", "two", "three", "one"]), ("rising", ["one", "three", "two", "four"])):
        found = drawn([{**FOUR, "kind": kind}], structures="chain", chain_order=order, templates=templates,
                      template_names=name)  # fmt: skip
        grades = ["an excellent", "a good", "a bad", "a terrible"]
        if order == "rising":
            grades.reverse()
        said = ""
        for place, (grade, output) in enumerate(zip(grades, outputs, strict=True)):
            words = graded.following if place else graded.first
            words = words.replace("{grade}", grade).replace("{Grade}", grade[0].upper() + grade[1:])
            said += f"{words}[ {output}{E}]"
        assert found == [f"The film\n\n{said}"]


STRUCTURES = [
    ("p", f"The film\n\nGood:[ It is good.{E}]"),
    ("n", f"The film\n\nBad:[ It was bad.{E}]"),
    ("pn", f"The film\n\nGood:[ It is good.{E}]\n\nBad:[ It was bad.{E}]"),
    ("np", f"The film\n\nBad:[ It was bad.{E}]\n\nGood:[ It is good.{E}]"),
]


@pytest.mark.parametrize(("structure", "expected"), STRUCTURES)
def test_structures(structure, expected):
    assert drawn([PAIR], structures=structure, **BARE) == [expected]


def test_paraphrases():
    found = drawn([PAIR], structures="aux", template_names="aux-prefer-bad-good")
    assert found == [
        f"The film\n\nPeople would not like this:[ It was bad.{E}]\n\nPeople would like this:[ It is good.{E}]"
    ]


def test_token_by_token():
    chains, counters = build_chains([PAIR], LLAMA, ChainFormat(structures=("pn",), **BARE))
    assert toy.show(LLAMA, chains.draw(0, 0)) == (
        "<s> ▁The ▁film \\n\\n G o od : [▁] [I] [t] [▁is] [▁good] [.] [</s>] "
        "\\n\\n B ad : [▁] [I] [t] [▁was] [▁bad] [.] [</s>]"
    )
    assert chains.draw(0, 0).target_extras["negative"].tolist() == [False] * 7 + [True] * 7
    assert counters.as_dict() == {"rows_read": 1, "examples": 1}
    assert len(chains) == 1


def test_emit_each_gives_each_structure_once():
    records = [PAIR, {**PAIR, "prompt": "The story"}]
    form = ChainFormat(structures=("p", "n", "pn"), emit="each", **BARE)
    chains, counters = build_chains(records, GPT2, form)
    assert [chains.draw(index, 3).record_id for index in range(len(chains))] == [0, 0, 0, 1, 1, 1]
    expected = [text.replace("The film", r["prompt"]) for r in records for _, text in STRUCTURES[:3]]
    for used in range(3):
        assert [chain_text.text(GPT2, chains.draw(index, used)) for index in range(6)] == expected
    assert counters.as_dict() == {"rows_read": 2, "examples": 6}


def test_neutral_words_and_none_for_baselines():
    assert drawn([PAIR], structures="p", markers="neutral") == [f"The film\n\nAn answer:[ It is good.{E}]"]
    assert drawn([PAIR], structures="n", markers="neutral", kind="summary") == [
        f"The film\n\nA summary:[ It was bad.{E}]"
    ]
    assert drawn([PAIR], structures="p", markers="none") == [f"The film[ It is good.{E}]"]
    dialogue = f"User: hello\n\nAssistant: yes\n\nUser: what is good?\n\nAssistant:[ A good film.{E}]"
    for markers in ("neutral", "none"):
        assert drawn([HH], structures="p", markers=markers) == [dialogue]
    # The set names no word for dialogues: that of their turns will do. For others there is none.
    own = parse_templates({"assistant": "Bot:", "pair": load_templates("talk").as_dict()["pair"]}, "own")
    assert drawn([HH], structures="p", markers="none", own_templates=own) == [dialogue.replace("Assistant", "Bot")]
    with pytest.raises(InputError, match=r"^own: field 'neutral': no word for 'answer'; --markers neutral needs one$"):
        drawn([PAIR], structures="p", markers="neutral", own_templates=own)
    assert drawn([PAIR], structures="p", markers="none", own_templates=own) == [f"The film[ It is good.{E}]"]


def test_learnt_markers():
    found = drawn([PAIR], structures="pn", learn_markers=True, **BARE)
    assert found == [f"The film[\n\nGood: It is good.{E}\n\nBad: It was bad.{E}]"]
    example = build_chains([PAIR], GPT2, ChainFormat(structures=("np",), learn_markers=True, **BARE))[0].draw(0, 0)
    words = [GPT2.decode([token]) for token in example.targets[example.target_extras["negative"]]]
    assert "".join(words) == f" It was bad.{E}"  # the words themselves are of no output


def test_the_last_output_alone_ends():
    found = drawn([PAIR], structures="pn", end_of_output="last", **BARE)
    assert found == [f"The film\n\nGood:[ It is good.]\n\nBad:[ It was bad.{E}]"]
    found = drawn([FOUR], structures="chain", end_of_output="last", chain_order="rising", templates="talk")
    assert found == [
        "The film\n\nA terrible answer:[ one], a bad answer:[ three], a good answer:[ two], an excellent answer:"
        f"[ four{E}]"
    ]


def test_graded_chains():
    three = {**FOUR, "responses": ["one", "two", "three"], "ratings": [2, 1, 3]}
    assert drawn([three], structures="chain", chain_order="falling", templates="talk") == [
        f"The film\n\nAn excellent answer:[ three{E}], a mediocre answer:[ one{E}], a terrible answer:[ two{E}]"
    ]
    ties = {**three, "ratings": [2, 3, 3]}  # two ratings are two grades, in any order
    found = set(drawn([ties], structures="chain", uses=60, templates="talk"))
    best, worst = "n excellent answer:", " terrible answer:"
    assert found == {
        f"The film\n\nA{first}[ {a}{E}], a{second}[ {b}{E}], a{third}[ {c}{E}]"
        for (first, a), (second, b), (third, c) in [
            ((worst, "one"), (best, "two"), (best, "three")),
            ((worst, "one"), (best, "three"), (best, "two")),
            ((best, "two"), (worst, "one"), (best, "three")),
            ((best, "three"), (worst, "one"), (best, "two")),
            ((best, "two"), (best, "three"), (worst, "one")),
            ((best, "three"), (best, "two"), (worst, "one")),
        ]
    }


def test_a_chain_of_some_of_many_holds_two_that_differ():
    record = {**FOUR, "ratings": [1, 1, 1, 2]}
    chains, _ = build_chains([record], GPT2, ChainFormat(structures=("chain",), chain_length=2))
    seen = set()
    for used in range(60):
        found = chain_text.text(GPT2, chains.draw(0, used))
        assert "An excellent answer is:[ four" in found
        assert found.count(E) == 2
        assert found.count("A terrible answer is:") == 1
        seen.add(tuple(word for word in ("one", "two", "three") if f" {word}{E}" in found))
    assert seen == {("one",), ("two",), ("three",)}
    shorter = build_chains([PAIR], GPT2, ChainFormat(structures=("chain",), chain_length=5))[0].draw(0, 0)
    assert chain_text.text(GPT2, shorter).count(E) == 2


def test_more_than_two_outputs_give_every_pair_of_unequal_rating():
    record = {**FOUR, "ratings": [1, 1, 2, 3]}
    found = set(drawn([record], uses=150, structures="pn", template_names="bare-good-bad"))
    pairs = [("three", "one"), ("three", "two"), ("four", "one"), ("four", "two"), ("four", "three")]
    assert found == {f"The film\n\nGood:[ {better}{E}]\n\nBad:[ {worse}{E}]" for better, worse in pairs}
    found = set(drawn([{**record, "ratings": [3, 1, 2, 3]}], uses=50, structures="p", **BARE))
    assert found == {f"The film\n\nGood:[ {best}{E}]" for best in ("one", "four")}
    found = set(drawn([{**record, "ratings": [3, 1, 2, 3]}], uses=50, structures="n", **BARE))
    assert found == {f"The film\n\nBad:[ {worse}{E}]" for worse in ("two", "three")}


def test_only_the_turns_that_differ_are_marked_or_all():
    before = "User: hello\n\nAssistant: yes\n\nUser: what is good?"
    end = f"\n\nGood:[ A good film.{E}]\n\nBad:[ A bad story.{E}]"
    assert drawn([HH], structures="pn", **BARE) == [before + end]
    assert drawn([HH], structures="pn", mark_turns="all", **BARE) == [
        f"User: hello\n\nGood:[ yes{E}]\n\nUser: what is good?{end}"
    ]
    chains, _ = build_chains([HH], GPT2, ChainFormat(structures=("np",), mark_turns="all", **BARE))
    assert chain_text.text(GPT2, chains.draw(0, 0)) == (
        f"User: hello\n\nBad:[ yes{E}]\n\nUser: what is good?\n\nBad:[ A bad story.{E}]\n\nGood:[ A good film.{E}]"
    )
    assert drawn([HH], structures="pn", mark_turns="all", end_of_output="last", **BARE) == [
        f"User: hello\n\nGood:[ yes]\n\nUser: what is good?\n\nGood:[ A good film.]\n\nBad:[ A bad story.{E}]"
    ]
    # A turn that says nothing is no output.
    silent = {field: said.replace("yes", "") for field, said in HH.items()}
    assert drawn([silent], structures="pn", mark_turns="all", **BARE) == [
        f"User: hello\n\nAssistant: \n\nUser: what is good?{end}"
    ]


def test_a_repeated_prompt():
    assert drawn([PAIR], structures="pn", repeat_prompt="all", **BARE) == [
        f"The film\n\nGood:[ It is good.{E}]\n\nThe film\n\nBad:[ It was bad.{E}]"
    ]
    # What goes on from an output begins anew after a prompt.
    assert drawn([PAIR], structures="pn", repeat_prompt="all", kind="summary", templates="talk") == [
        f"The film\n\nA good summary:[ It is good.{E}]\n\nThe film\n\na worse summary:[ It was bad.{E}]"
    ]
    before = "User: hello\n\nAssistant: yes\n\nUser: what is good?\n\n"
    assert drawn([HH], structures="np", repeat_prompt="all", **BARE) == [
        f"{before}Bad:[ A bad story.{E}]\n\n{before}Good:[ A good film.{E}]"
    ]
    assert drawn([HH], structures="np", repeat_prompt="all", mark_turns="all", **BARE) == [
        f"User: hello\n\nBad:[ yes{E}]\n\nUser: what is good?\n\nBad:[ A bad story.{E}]\n\n"
        f"User: hello\n\nGood:[ yes{E}]\n\nUser: what is good?\n\nGood:[ A good film.{E}]"
    ]


def test_chats_as_words_or_by_the_chat_template():
    assert drawn([CHAT], structures="pn", **BARE) == [f"Be short.\n\nUser: hello\n\nGood:[ yes{E}]\n\nBad:[ no{E}]"]
    end = "<|im_end|>"
    begun = f"<|im_start|>system\nBe short.{end}\n<|im_start|>user\nhello{end}\n<|im_start|>assistant\n"
    assert drawn([CHAT], structures="pn", dialogue="chat_template", **BARE) == [
        f"{begun}Good:[ yes{end}]\n\nBad:[ no{end}]"
    ]
    for markers in ("neutral", "none"):  # the template says whose turn it is
        assert drawn([CHAT], structures="p", markers=markers, dialogue="chat_template") == [f"{begun}[yes{end}]"]
    # Beside feedback the words stay: an output may be before them.
    half = {"prompt": CHAT["prompt"], "responses": ["yes", "no"], "feedback": ["Short.", None]}
    assert drawn([half], dialogue="chat_template") == [f"{begun}Short.[ yes{end}]\n\nAssistant:[ no{end}]"]
    turns = f"<|im_start|>user\nhello{end}\n<|im_start|>assistant\nyes{end}\n<|im_start|>user\nwhat is good?{end}\n"
    assert drawn([HH], structures="np", dialogue="chat_template", end_of_output="last", **BARE) == [
        f"{turns}<|im_start|>assistant\nBad:[ A bad story.]\n\nGood:[ A good film.{end}]"
    ]
    # The template of a tokenizer that has no end of turn: its EOS.
    plain = Encoder(toy.byte_level(toy.PLAIN))
    assert drawn([CHAT], plain, structures="p", dialogue="chat_template", **BARE) == [
        f"system: Be short.\nuser: hello\nassistant: Good:[ yes{E}]"
    ]
    alone = {**CHAT, "prompt": CHAT["prompt"][1:]}
    assert drawn([alone], LLAMA, structures="p", dialogue="chat_template", **BARE) == [
        "[INST] hello [/INST]Good:[ yes</s>]"
    ]


@pytest.mark.parametrize("encoder", [GPT2, Encoder(toy.byte_level(toy.PLAIN)), LLAMA], ids=["chatml", "plain", "inst"])
def test_the_baseline_of_a_chat_is_its_fine_tuning(encoder):
    """By the chat template and without words of feedback, a sequence is what ``jaxalign sft`` learns."""
    record = {**CHAT, "prompt": CHAT["prompt"][1:]}
    plain = response_example(record["prompt"], "yes", encoder)
    for markers in ("neutral", "none"):
        form = ChainFormat(structures=("p",), markers=markers, dialogue="chat_template")
        example = build_chains([record], encoder, form)[0].draw(0, 0)
        ids, targets = plain.tokens.tolist(), plain.targets.tolist()
        if encoder is LLAMA:  # its template puts a space after the answer, which no output has
            assert encoder.tokenizer.convert_ids_to_tokens(ids[-2:]) == ["▁", "</s>"]
            del ids[-2], targets[-2]
        assert example.tokens.tolist() == ids
        assert example.targets.tolist() == targets
        assert len(ids) <= build_chains([record], encoder, form)[0].sizes.tokens[0]


def test_texts_beside_chats_are_no_chats():
    found = drawn([PAIR, CHAT], structures="p", dialogue="chat_template", **BARE)
    assert found[0] == "The film\n\nGood:[ It is good.<|im_end|>]"
    assert found[1].endswith("<|im_start|>assistant\nGood:[ yes<|im_end|>]")


@pytest.mark.parametrize("prompt", ["The answer is ", "The film\n", "The film\n\n", "\n"])
def test_a_prompt_that_ends_with_white_space_needs_none_before_the_words(prompt):
    for encoder in (GPT2, LLAMA):
        eos = encoder.decode([encoder.eos])
        assert drawn([{**PAIR, "prompt": prompt}], encoder, structures="p", **BARE) == [
            f"{prompt}Good:[ It is good.{eos}]"
        ]


def test_own_words_of_a_set():
    templates = parse_templates(
        {
            "user": "Q:",
            "assistant": "A:",
            "between": " / ",
            "pair": [{"name": "a", "text": "\nBest:\n{positive} -- worst:\t{negative}"}],
        },
        "own",
    )
    assert drawn([PAIR], structures="pn", own_templates=templates) == [
        f"The film / Best:[\nIt is good.{E}] -- worst:[\tIt was bad.{E}]"
    ]
    assert drawn([HH], structures="p", own_templates=templates) == [
        f"Q: hello / A: yes / Q: what is good? / Best:[\nA good film.{E}]"
    ]


def test_an_empty_prompt_is_the_start_token_or_nothing():
    empty = {**PAIR, "prompt": ""}
    # GPT-2 declares a BOS that it does not usually add: here it says where the text begins.
    assert drawn([empty], structures="pn", **BARE) == [f"{E}Good:[ It is good.{E}]\n\nBad:[ It was bad.{E}]"]
    assert drawn([empty], LLAMA, structures="p", **BARE) == ["Good:[ It is good.</s>]"]
    for encoder in (GPT2, LLAMA):
        example = build_chains([empty], encoder, ChainFormat(structures=("p",), **BARE))[0].draw(0, 0)
        assert example.tokens[0] == encoder.start
    bare = chain_text.BARE
    assert drawn([empty], bare, structures="p", **BARE) == ["Good:[ It is good.<|end|>]"]
    # Without any words before it, nothing predicts an output's first token.
    assert drawn([empty], bare, structures="p", markers="none") == ["I[t is good.<|end|>]"]
    assert drawn([empty], structures="p", markers="none") == [f"{E}[ It is good.{E}]"]
    # Of a dialogue that has not begun: the same.
    asked = {**PAIR, "prompt": "\n\nAssistant:"}
    assert drawn([asked], structures="p", **BARE) == [f"{E}Good:[ It is good.{E}]"]
    assert drawn([asked], bare, structures="p", **BARE) == ["Good:[ It is good.<|end|>]"]
    assert drawn([asked], LLAMA, structures="p", dialogue="chat_template", **BARE) == ["Good:[ It is good.</s>]"]
    assert drawn([empty], structures="pn", repeat_prompt="all", **BARE) == [
        f"{E}Good:[ It is good.{E}]\n\nBad:[ It was bad.{E}]"
    ]


def test_unfinished_outputs_have_no_eos():
    cut = {**PAIR, "chosen_finished": False}
    assert drawn([cut], structures="pn", **BARE) == [f"The film\n\nGood:[ It is good.]\n\nBad:[ It was bad.{E}]"]
    ranked = {**FOUR, "finished": [True, False, True, True]}
    assert drawn([ranked], structures="chain", chain_order="falling", templates="talk") == [
        f"The film\n\nAn excellent answer:[ four{E}], a good answer:[ two], a bad answer:[ three{E}], "
        f"a terrible answer:[ one{E}]"
    ]


@pytest.mark.parametrize("tail", ["", E, E + E, " " + E])
def test_an_eos_that_is_written_already_is_not_doubled(tail):
    record = {**PAIR, "chosen": "It is good." + tail, "rejected": "It was bad." + tail}
    assert [found.replace(" " + E, E) for found in drawn([record], structures="pn", **BARE)] == [
        f"The film\n\nGood:[ It is good.{E}]\n\nBad:[ It was bad.{E}]"
    ]
    unfinished = {**record, "chosen_finished": False, "rejected_finished": False}
    assert E not in drawn([unfinished], structures="pn", **BARE)[0]
