"""Which words serve what: those asked with are those that training drew, and samples end where the next would begin."""

import itertools

import pytest

from jaxalign.data import ChainFormat, ChainWriter, FeedbackPrompts, build_chains, load_templates
from jaxalign.data._templates import Marker, parse_templates
from jaxalign.errors import InputError
from tests.data import chain_text
from tests.data.chain_text import CHAT, EARLY, GPT2, HH

NAMES = ("bare-good-bad", "bare-bad-good")
FOUR = {"prompt": "The film", "responses": ["one", "two", "three", "four"], "ratings": [1, 2, 3, 4]}
STRUCTURES = ("p", "n", "pn", "np", "aux", "chain")
POLARITIES = ("positive", "negative")


def of(own=None, **form):
    form = ChainFormat(**form)
    return FeedbackPrompts(ChainWriter(GPT2, load_templates(form.templates) if own is None else own, form))


def asked(prompts, *, kind="answer", template=None):
    """(words of a good output, of a bad one, of a better one behind a bad one), without the prompt."""
    found = [GPT2.decode(prompts.tokens("The", polarity, kind=kind, template=template)) for polarity in POLARITIES]
    better = GPT2.decode(prompts.better("The", "x", kind=kind, template=template))
    begun = f"{found[1]} x<|endoftext|>"
    assert better.startswith(begun)
    return *(words.removeprefix("The\n\n") for words in found), better.removeprefix(begun)


GOOD, BAD = "A good answer is:", "A bad answer is:"
LIKED, DISLIKED = "People would like this:", "People would not like this:"
BEST, WORST = "An excellent answer is:", "A terrible answer is:"


@pytest.mark.parametrize(
    ("structures", "expected"),
    [
        (("pn", "np"), (GOOD, BAD, GOOD)),
        (("np", "pn"), (GOOD, BAD, GOOD)),
        # Words that training did not draw so, but that say the same.
        (("pn",), (GOOD, BAD, GOOD)),
        (("p",), (GOOD, BAD, GOOD)),
        (("n",), (GOOD, BAD, GOOD)),
        (("aux",), (LIKED, DISLIKED, LIKED)),
        (("aux", "pn", "np"), (LIKED, DISLIKED, LIKED)),
        (("chain",), (BEST, WORST, BEST)),
        (("chain", "p"), (BEST, WORST, BEST)),
    ],
)
def test_what_is_asked_with_by_default(structures, expected):
    good, bad, better = expected
    assert asked(of(structures=structures)) == (good, bad, f"\n\n{better}")


def test_second_words_are_of_what_training_drew_behind_an_output():
    def better(*structures):
        first, second = of(structures=structures).writer.choice.better("answer")
        return first.text, second.text

    assert better("n", "p", "aux") == (DISLIKED, f"\n\n{LIKED}")
    assert better("n", "chain") == (WORST, f"\n\n{BEST}")
    assert better("n", "pn") == (BAD, f"\n\n{GOOD}")


EVERY = [some for count in (1, 2) for some in itertools.combinations(STRUCTURES, count)]


@pytest.mark.parametrize("structures", EVERY, ids="-".join)
@pytest.mark.parametrize("kind", ["answer", "summary", "dialogue"])
def test_words_that_training_drew_come_first(structures, kind):
    """Of all that stood there in training, where anything did."""
    chains, _ = build_chains([{**FOUR, "kind": kind}], GPT2, ChainFormat(structures=structures))
    firsts, behind = {True: set(), False: set()}, set()
    for used in range(300):
        (first, _, worse), *others = chains.chain(0, used)
        firsts[worse].add(first)
        if worse and others and not others[0][2]:
            behind.add((first, others[0][0]))
    choice = chains.writer.choice
    for polarity, drawn in (("positive", firsts[False]), ("negative", firsts[True])):
        assert not drawn or choice.opening(kind, polarity) in drawn
    assert not behind or choice.better(kind) in behind
    for structure in structures:  # and all that can be drawn is known
        known = choice.markers(kind, structure)
        chains, _ = build_chains([{**FOUR, "kind": kind}], GPT2, ChainFormat(structures=(structure,)))
        assert {marker for used in range(60) for marker, _, _ in chains.chain(0, used)} <= set(known)


def test_any_template_can_be_named():
    """Whatever training drew, of pairs, paraphrases and grades."""
    for structures in (("pn", "np"), ("p",), ("chain",), ("aux",)):
        prompts = of(structures=structures)
        assert asked(prompts, template="graded-answer") == (BEST, WORST, f"\n\n{BEST}")
        assert asked(prompts, template="graded-summary", kind="answer")[0] == "An excellent summary is:"
        for good, bad, words, other in (
            ("bare-good-bad", "bare-bad-good", "Good:", "Bad:"),
            ("aux-prefer-good-bad", "aux-prefer-bad-good", LIKED, DISLIKED),
        ):
            assert GPT2.decode(prompts.tokens("The", template=good)) == f"The\n\n{words}"
            assert GPT2.decode(prompts.tokens("The", "negative", template=bad)) == f"The\n\n{other}"
            assert GPT2.decode(prompts.better("The", "x", template=bad)).endswith(f"{other} x<|endoftext|>\n\n{words}")
            with pytest.raises(InputError, match=f"^template '{bad}' does not begin with the positive output$"):
                prompts.tokens("The", template=bad)
            with pytest.raises(InputError, match=f"^template '{good}' begins with the positive output, not the neg"):
                prompts.better("The", "x", template=good)
        with pytest.raises(InputError, match=r"^templates paper: no template 'god'; there are statement-good-bad-"):
            prompts.tokens("The", template="god")
        with pytest.raises(InputError, match=r"^templates paper: no template 'god'; there are statement-good-bad-"):
            prompts.better("The", "x", template="god")


def test_template_names_hold_for_what_is_asked():
    assert asked(of(template_names=NAMES)) == ("Good:", "Bad:", "\n\nGood:")
    assert asked(of(structures=("p",), template_names=NAMES)) == ("Good:", "Bad:", "\n\nGood:")
    assert asked(of(structures=("chain", "p"), template_names=("graded-answer", *NAMES))) == (
        BEST,
        WORST,
        f"\n\n{BEST}",
    )
    assert asked(of(structures=("p", "chain"), template_names=("graded-answer", *NAMES))) == (
        "Good:",
        WORST,
        f"\n\n{BEST}",
    )
    alone = of(structures=("pn",), template_names=("bare-good-bad",))
    assert GPT2.decode(alone.tokens("The")) == "The\n\nGood:"
    for call in (lambda: alone.tokens("The", "negative"), lambda: alone.better("The", "x")):
        with pytest.raises(InputError, match=r"^templates paper: none for 'answer' begins with the negative output$"):
            call()


def test_what_cannot_be_asked_for_is_said_before_training():
    of().check(["answer", "summary", "dialogue"])
    of(structures=("p",), markers="none").check(["answer"])
    bad = of(structures=("np",), template_names=("bare-bad-good",))
    bad.check([])
    with pytest.raises(InputError, match=r"^templates paper: none for 'summary' begins with the positive output$"):
        bad.check(["summary"])
    own = parse_templates({"pair": [{"name": "a", "text": "Good: {positive} bad: {negative}"}]}, "own")
    with pytest.raises(InputError, match=r"^own: field 'neutral': no word for 'answer'"):
        of(own, structures=("p",), markers="neutral").check(["answer"])
    with pytest.raises(InputError, match=r"^--template-names: own has no template 'b'; it has: a$"):
        of(own, template_names=("a", "b")).writer.choice.check_names()


def test_neutral_words():
    said = {"answer": "An answer:", "summary": "A summary:", "dialogue": "Assistant:"}
    for dialogue, kind in itertools.product(("words", "chat_template"), said):
        neutral = of(structures=("p",), markers="neutral", dialogue=dialogue).writer.choice.neutral(kind)
        none = of(structures=("p",), markers="none", dialogue=dialogue).writer.choice.neutral(kind)
        if kind == "dialogue":  # a chat template has opened the turn; words say whose it is
            assert neutral == none == Marker("" if dialogue == "chat_template" else said[kind])
        else:
            assert neutral == Marker(said[kind])
            assert none == Marker("")
        assert of(dialogue=dialogue).writer.choice.neutral(kind) == Marker(said[kind])  # beside feedback


def test_a_chats_baseline_is_asked_where_its_template_ends():
    for markers in ("neutral", "none"):
        prompts = of(structures=("p",), markers=markers, dialogue="chat_template")
        tokens = prompts.tokens(CHAT["prompt"])
        assert GPT2.decode(tokens).endswith("hello<|im_end|>\n<|im_start|>assistant\n")
        example = build_chains([CHAT], GPT2, prompts.writer.form)[0].draw(0, 0)
        assert example.tokens[: len(tokens)].tolist() == tokens
        assert GPT2.decode(example.targets) == "yes<|im_end|>"
        assert prompts.comparison(CHAT).tokens[: len(tokens)].tolist() == tokens


def test_outputs_that_end_themselves_need_no_stop_strings():
    """The same words inside an answer would cut it."""
    for form in ({}, {"structures": ("p",)}, {"structures": ("aux", "chain")}, {"mark_turns": "all"}):
        for kind in ("answer", "summary", "dialogue"):
            assert of(**form).stop_strings(kind) == []
    for markers in ("neutral", "none"):
        assert of(structures=("p",), markers=markers, end_of_output="last").stop_strings("dialogue") == []


def stops(kind="answer", own=None, **form):
    return of(own, end_of_output="last", **form).stop_strings(kind)


def test_stop_strings_begin_every_next_marker():
    helpful = [f"\n\n{words} answer:" for words in ("A helpful", "An unhelpful")]
    assert stops(templates="released") == helpful
    assert stops("dialogue", templates="released") == [*helpful, "\n\nUser:"]
    assert stops("summary", templates="talk") == [
        "\n\nA bad answer is",
        "\n\nA good summary:",
        ", a good answer is",
        ", a worse summary:",
    ]
    assert stops(template_names=NAMES) == ["\n\nBad:", "\n\nGood:"]
    aux = stops(templates="released", structures=("aux", "chain"))
    assert "\n\nThe following answer is useful:" in aux
    assert "\n\nA mediocre answer:" in aux
    assert not set(aux) & set(helpful)  # which training did not draw
    own = parse_templates(
        {"between": " / ", "user": "Q:", "pair": [{"name": "a", "text": "Best: {positive} -- worst: {negative}"}]},
        "own",
    )
    assert stops("dialogue", own, structures=("pn",)) == [" -- worst:", " / Best:", " / Q:"]


RANKED = {"prompt": "The", "responses": ["one", "two", "three"], "ratings": [1, 2, 3]}
TURN = {**HH, "rejected": HH["rejected"].replace("yes", "no")}


@pytest.mark.parametrize("templates", ["paper", "released"])
@pytest.mark.parametrize(
    ("record", "form"),
    [
        (RANKED, {}),
        ({**RANKED, "kind": "summary"}, {}),
        ({**RANKED, "prompt": [{"role": "user", "content": "hello"}]}, {}),
        ({**RANKED, "prompt": [{"role": "user", "content": "hello"}]}, {"repeat_prompt": "dialogues"}),
        *itertools.product(
            (HH, EARLY, TURN), ({}, {"mark_turns": "all"}, {"repeat_prompt": "dialogues", "mark_turns": "all"})
        ),
    ],
)
def test_no_output_of_training_is_without_one_behind_it(record, form, templates):
    """Where none but the last has an EOS."""
    form = ChainFormat(structures=("pn", "np", "aux", "chain"), end_of_output="last", templates=templates, **form)
    chains, _ = build_chains([record], GPT2, form)
    kind = "dialogue" if "prompt" not in record or isinstance(record["prompt"], list) else record.get("kind", "answer")
    found = tuple(FeedbackPrompts(chains.writer).stop_strings(kind))
    assert all(found)
    for used in range(60):
        parts = chain_text.text(GPT2, chains.draw(0, used)).split("]")
        assert len(parts) > 2
        assert parts[-1] == ""
        assert all(part.startswith(found) for part in parts[1:-1])
