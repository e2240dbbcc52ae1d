"""Templates: the built-in sets are what they should be, files are checked, and every error names its place."""

import collections
import dataclasses

import pytest

from jaxalign.data import BUILT_IN_TEMPLATES, GradedTemplate, Marker, PairTemplate, TemplateSet, load_templates
from jaxalign.data._templates import KINDS, parse_templates
from jaxalign.errors import InputError

GOOD = 'name = "a"\ntext = "A good one: {positive}, a bad one: {negative}"\n'
GRADED = 'name = "g"\nfirst = "{Grade} one:"\nfollowing = ", {grade} one:"\ngrades = ["a bad", "a good"]\n'


def load(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    return load_templates(path)


def refusal(tmp_path, text):
    """What is wrong with a file, without its name: one line."""
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    message, place = str(error.value), f"{tmp_path / 'own.toml'}: "
    assert message.startswith(place)
    assert "\n" not in message
    return message.removeprefix(place)


def pair(name="a", text="A good one: {positive}, a bad one: {negative}", **fields):
    return PairTemplate(name, text, **fields)


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_built_in_sets_load_and_serve_every_kind(name):
    templates = load_templates(name)
    assert templates.name == name
    assert (templates.user, templates.assistant, templates.between) == ("User:", "Assistant:", "\n\n")
    assert dict(templates.neutral) == {"answer": "An answer:", "summary": "A summary:", "dialogue": "Assistant:"}
    for kind in KINDS:
        assert templates.of_kind(kind)
        assert sum(kind in graded.kinds for graded in templates.graded) == 1
    assert all(len(graded.grades) == 5 for graded in templates.graded)


def test_the_papers_list_has_its_structure():
    templates = load_templates("paper")
    plain = [template for template in templates.pairs if not template.auxiliary]
    assert collections.Counter(template.kinds for template in plain) == {("summary",): 8, KINDS: 12, ("dialogue",): 4}
    assert [len(templates.of_kind(kind)) for kind in ("answer", "summary", "dialogue")] == [12, 20, 16]
    assert len({template.text for template in templates.pairs}) == len(templates.pairs)
    for kinds in (("summary",), KINDS, ("dialogue",)):
        orders = collections.Counter(template.order[0] for template in plain if template.kinds == kinds)
        assert orders["positive"] == orders["negative"]
    assert {template.order[0] for template in templates.pairs if template.auxiliary} == {"positive", "negative"}
    # Good and bad, good and worse, bad and better; statements, requests, suggestions, bare words and personas.
    for first, second in (("good", "bad"), ("good", "worse"), ("bad", "good"), ("bad", "better")):
        for kind in ("answer", "summary", "dialogue"):
            openings = [
                template.markers[0].text
                for template in templates.of_kind(kind)
                if first in template.markers[0].text.lower().rstrip(":").split()
                and second in template.markers[1].text.lower().rstrip(":").split()
            ]
            assert any(opening.startswith("A ") for opening in openings)
            assert any(opening.startswith("Give me") for opening in openings)
    texts = [template.text for template in templates.of_kind("dialogue")]
    assert sum(text.startswith("Let's write") for text in texts) == 2
    assert sum(text.startswith(("Good:", "Bad:")) for text in texts) == 2
    assert sum("unbiased" in text and "disrespectful" in text for text in texts) == 2
    assert sum("an unhelpful" in text and "a helpful" in text for text in texts) == 2


def test_the_words_of_the_released_code_and_of_the_three_templates():
    released = {template.name: template.text for template in load_templates("released").pairs}
    assert released["helpful-unhelpful"] == "A helpful answer: {positive}\n\nAn unhelpful answer: {negative}"
    assert released["unhelpful-helpful"] == "An unhelpful answer: {negative}\n\nA helpful answer: {positive}"
    talk = [template.text for template in load_templates("talk").pairs]
    assert talk[:3] == [
        "A good summary: {positive}, a worse summary: {negative}",
        "You are a helpful assistant: {positive}, you are an unhelpful assistant: {negative}",
        "A bad answer is {negative}, a good answer is {positive}",
    ]


def test_every_marker_of_a_built_in_set_says_what_it_marks():
    """No template of the built-in sets has its outputs swapped; nor words that models would not learn alone."""
    for name in BUILT_IN_TEMPLATES:
        for template in load_templates(name).pairs:
            by_polarity = dict(zip(template.order, template.markers, strict=True))
            assert not template.markers[0].joined
            assert template.markers[1].joined
            for marker in template.markers:
                assert marker.space == " "
                assert marker.text == marker.text.rstrip()
            good, bad = (by_polarity[polarity].text.lower() for polarity in ("positive", "negative"))
            assert not set(bad.rstrip(":").split()) & {"good", "better", "helpful", "useful", "respectful"}
            assert not set(good.rstrip(":").split()) & {"bad", "worse", "unhelpful", "useless", "not", "disrespectful"}


def test_a_file_with_everything(tmp_path):
    text = f"""
user = "Person:"
assistant = "Machine:"
between = " / "
[neutral]
summary = "In short: "
[[pair]]
{GOOD}kinds = ["summary", "answer"]
auxiliary = true
[[graded]]
{GRADED}kinds = ["dialogue"]
"""
    assert load(tmp_path, text) == TemplateSet(
        name=str(tmp_path / "own.toml"),
        pairs=(pair(kinds=("summary", "answer"), auxiliary=True),),
        graded=(GradedTemplate("g", "{Grade} one:", ", {grade} one:", ("a bad", "a good"), ("dialogue",)),),
        user="Person:",
        assistant="Machine:",
        between=" / ",
        neutral={"summary": "In short: "},
    )
    assert load(tmp_path, f'between = ""\n[[pair]]\n{GOOD}').between == ""
    assert load(tmp_path, f"[[pair]]\n{GOOD}").pairs[0].kinds == KINDS


REFUSED = [
    ("", "it has no template ([[pair]] or [[graded]])"),
    ('user = "A:"', "it has no template ([[pair]] or [[graded]])"),
    ("[[pair]\n", "not a TOML file: "),
    (f'usr = "A:"\n[[pair]]\n{GOOD}', "unknown field 'usr'; did you mean 'user'?"),
    (f"zzz = 1\n[[pair]]\n{GOOD}", "unknown field 'zzz'; known: user, assistant, between, neutral, pair, graded"),
    (f"user = 3\n[[pair]]\n{GOOD}", "field 'user': expected words, is 3"),
    (f'assistant = " "\n[[pair]]\n{GOOD}', "field 'assistant': expected words, is ' '"),
    (f'neutral = "A:"\n[[pair]]\n{GOOD}', "field 'neutral': expected a table, got str"),
    (f'[neutral]\nsumary = "A:"\n[[pair]]\n{GOOD}', "field 'neutral': unknown field 'sumary'; did you mean 'summary'?"),
    (f'[neutral]\nsummary = ""\n[[pair]]\n{GOOD}', "field 'neutral': field 'summary': expected words, is empty"),
    (f"[pair]\n{GOOD}", "field 'pair': expected tables, each headed [[pair]]"),
    ("graded = [1]", "field 'graded': expected tables, each headed [[graded]]"),
    (f'[[pair]]\n{GOOD}knds = ["answer"]', "pair 1 (a): unknown field 'knds'; did you mean 'kinds'?"),
    ('[[pair]]\ntext = "Good: {positive} Bad: {negative}"', "pair 1: field 'name': expected words, is missing"),
    ("[[pair]]\nname = 'a'", "pair 1 (a): field 'text': expected words, is missing"),
    (f"[[pair]]\n{GOOD}[[pair]]\n{GOOD}", "two templates are called 'a'"),
    (f"[[pair]]\n{GOOD}[[graded]]\n{GRADED.replace('g', 'a', 1)}", "two templates are called 'a'"),
    (f"[[pair]]\n{GOOD}kinds = []", "pair 1 (a): field 'kinds': expected a list of answer, summary, dialogue, got []"),
    (f'[[pair]]\n{GOOD}kinds = "answer"', "pair 1 (a): field 'kinds': expected a list of answer, summary, dialogue"),
    (f'[[pair]]\n{GOOD}kinds = ["poem"]', "pair 1 (a): field 'kinds': expected a list of answer, summary, dialogue"),
    (f'[[pair]]\n{GOOD}kinds = [["answer"]]', "pair 1 (a): field 'kinds': expected a list of answer"),
    (f'[[pair]]\n{GOOD}auxiliary = "yes"', "pair 1 (a): field 'auxiliary': expected true or false, got 'yes'"),
    (f"[[pair]]\n{GOOD}check_words = 0", "pair 1 (a): field 'check_words': expected true or false, got 0"),
    (f"[[graded]]\n{GRADED}text = 'a'", "graded 1 (g): unknown field 'text'"),
    (f"[[graded]]\n{GRADED}kinds = [1]", "graded 1 (g): field 'kinds': expected a list of answer, summary, dialogue"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_bad_files_name_file_template_and_field(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Good: {positive}", "needs {positive} and {negative} once each, has {positive}"),
        ("Good: output", "needs {positive} and {negative} once each, has neither"),
        ("Good: {positive} {positive} Bad: {negative}", "has {positive}, {positive}, {negative}"),
        ("Good: {positive} Bad: {negativ}", "needs {positive} and {negative} once each, has {positive}, {negativ}"),
        ("Good: {positive} Bad: {negative} {}", "has {positive}, {negative}, {}"),
        ("Good: {positive} Bad: {negative}. Over.", "'. Over.' after the last output would be read by nothing"),
        ("{positive} Bad: {negative}", "there are no words before {positive}"),
        ("Bad: {negative} {positive}", "there are no words before {positive}"),
        ("Bad: {positive} Good: {negative}", "'Bad:' stands before {positive}, but says 'bad'; are the two swapped?"),
        ("A better one: {negative}, {positive}", "'A better one:' stands before {negative}, but says 'better'"),
        ("Fine: {positive}, an UNBIASED one: {negative}", "stands before {negative}, but says 'unbiased'"),
    ],
)
def test_bad_texts_of_pairs(tmp_path, text, message):
    said = refusal(tmp_path, f'[[pair]]\n{GOOD}[[pair]]\nname = "b"\ntext = "{text}"')
    assert said.startswith("pair 2 (b): field 'text': ")
    assert message in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{Grade} one:", "One:"), "field 'first': needs {grade} or {Grade} once, and no other placeholder"),
        ((", {grade} one:", "{grade} {grade}"), "field 'following': needs {grade} or {Grade} once"),
        ((", {grade} one:", "{grade} {positive}"), "field 'following': needs {grade} or {Grade} once"),
        (("{Grade} one:", "{GRADE} one:"), "field 'first': needs {grade} or {Grade} once"),
        (("{Grade} one:", ""), "field 'first': expected words, is empty"),
        (('["a bad", "a good"]', '["a good"]'), "field 'grades': expected a list of at least two, from worst to best"),
        (('["a bad", "a good"]', '"a good"'), "field 'grades': expected a list of at least two"),
        (('["a bad", "a good"]', '["a", "a"]'), "field 'grades': expected different words, none of them empty"),
        (('["a bad", "a good"]', '["a", " "]'), "field 'grades': expected different words, none of them empty"),
        (('["a bad", "a good"]', '["a", 1]'), "field 'grades': expected different words, none of them empty"),
        (("grades = ", "grade = "), "unknown field 'grade'; did you mean 'grades'?"),
    ],
)
def test_bad_graded_templates(tmp_path, change, message):
    assert refusal(tmp_path, "[[graded]]\n" + GRADED.replace(*change)).startswith(f"graded 1 (g): {message}")


def test_words_that_say_the_opposite_can_be_let_through(tmp_path):
    swapped = '[[pair]]\nname = "b"\ntext = "Not bad: {positive}, not good: {negative}"\n'
    assert "check_words = false" in refusal(tmp_path, swapped)
    templates = load(tmp_path, swapped + "check_words = false")
    assert [marker.text for marker in templates.pairs[0].markers] == ["Not bad:", ", not good:"]
    # Words of both kinds, or of neither, say nothing of a slip.
    load(tmp_path, '[[pair]]\nname = "b"\ntext = "Good, not bad: {positive}\\nThumbs down: {negative}"\n')


def test_files_that_are_none(tmp_path):
    with pytest.raises(
        InputError, match=r"^templates: papr: no such file, and none of the built-in names \(paper, rel"
    ):
        load_templates("papr")
    with pytest.raises(InputError, match="no such file"):
        load_templates(tmp_path)
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError) as error:
        load_templates(path)
    assert str(error.value) == f"{path}: not UTF-8 text"


def test_markers_their_spaces_and_what_goes_on():
    assert pair().markers == (Marker("A good one:", " ", False), Marker(", a bad one:", " ", True))
    assert pair().order == ("positive", "negative")
    other = pair(text="Bad:{negative}\nGood:\n {positive}\n")
    assert other.markers == (Marker("Bad:", " ", False), Marker("\nGood:", "\n ", True))
    assert other.order == ("negative", "positive")


def test_grades_are_spread_evenly_with_the_outermost_for_two():
    one = GradedTemplate("g", "{Grade} one:", ",\n{grade} one:\n", ("a poor", "a fair", "a fine", "a great"))
    assert one.marker(0, 0, 2) == Marker("A poor one:", " ", False)
    assert one.marker(1, 1, 2) == Marker(",\na great one:", "\n", True)
    assert [one.marker(0, rank, 3).text for rank in range(3)] == ["A poor one:", "A fine one:", "A great one:"]
    assert [one.marker(0, rank, 4).text[2:6] for rank in range(4)] == ["poor", "fair", "fine", "grea"]
    assert one.marker(2, 0, 1).text == ",\na poor one:"
    with pytest.raises(ValueError, match="template 'g' has 4 grades, not 5"):
        one.marker(0, 0, 5)


@pytest.mark.parametrize("grades", range(2, 9))
def test_different_ranks_have_different_grades_in_order(grades):
    words = tuple(f"g{number}" for number in range(grades))
    one = GradedTemplate("g", "{grade}", "{grade}", words)
    for ranks in range(2, grades + 1):
        found = [one.marker(0, rank, ranks).text for rank in range(ranks)]
        assert found == sorted(set(found))
        assert (found[0], found[-1]) == (words[0], words[-1])


def test_of_kind_and_find():
    templates = TemplateSet("own", (pair("a", kinds=("summary",)), pair("b"), pair("c", auxiliary=True)))
    assert [template.name for template in templates.of_kind("summary")] == ["a", "b"]
    assert [template.name for template in templates.of_kind("answer")] == ["b"]
    assert templates.find("c").auxiliary
    with pytest.raises(InputError, match=r"^templates own: no template 'd'; there are a, b, c$"):
        templates.find("d")


def test_a_set_is_what_is_read_of_its_dict(tmp_path):
    swapped = '[[pair]]\nname = "b"\ntext = "Not bad: {positive}, worse: {negative}"\ncheck_words = false'
    for templates in (*map(load_templates, BUILT_IN_TEMPLATES), load(tmp_path, swapped)):
        again = parse_templates(templates.as_dict(), templates.name)
        assert again == templates
        assert again.fingerprint() == templates.fingerprint()


def test_the_fingerprint_goes_by_content():
    paper = load_templates("paper")
    assert len(paper.fingerprint()) == 64
    assert dataclasses.replace(paper, name="other").fingerprint() == paper.fingerprint()
    changes = [
        {"pairs": paper.pairs[1:]},
        {"pairs": paper.pairs[::-1]},
        {"pairs": (dataclasses.replace(paper.pairs[0], text=paper.pairs[0].text + " "), *paper.pairs[1:])},
        {"pairs": (dataclasses.replace(paper.pairs[0], auxiliary=True), *paper.pairs[1:])},
        {"graded": paper.graded[:1]},
        {"graded": (dataclasses.replace(paper.graded[0], grades=("a", "b")), paper.graded[1])},
        {"user": "Q:"},
        {"assistant": "A:"},
        {"between": "\n"},
        {"neutral": {"answer": "An answer:"}},
    ]
    changed = [dataclasses.replace(paper, **change) for change in changes]
    others = [load_templates(name) for name in BUILT_IN_TEMPLATES]
    assert len({templates.fingerprint() for templates in [*changed, *others]}) == len(changed) + len(others)
