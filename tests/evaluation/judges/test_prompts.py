"""Prompts as data: the built-in ones, files of one's own, and what is wrong with them."""

import pytest

from jaxalign.errors import InputError
from jaxalign.evaluation.judges import BUILT_IN_PROMPTS, Comparison, load_prompts

AXES = {
    "summaries": {"overall", "accuracy", "coherence", "coverage"},
    "summaries-concise": {"overall"},
    "dialogue": {"overall", "helpful", "harmless"},
}
GOOD = """
text = '''{question} {prompt} A: {first} B: {second} {answer}'''
explained = "Say why, then Preferred: {choices}"
direct = "Preferred: {choices}"
[questions]
overall = "Which is better?"
"""


@pytest.mark.parametrize("name", BUILT_IN_PROMPTS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("form", ["explained", "direct"])
def test_built_in_prompts_hold_what_is_compared(name, ties, form):
    prompts = load_prompts(name)
    assert set(prompts.questions) == AXES[name]
    for axis in prompts.questions:
        text = prompts.render(Comparison(prompt="PP", first="FF", second="SS", axis=axis), ties=ties, form=form)
        assert text.index("PP") < text.index("FF") < text.index("SS") < text.index("Preferred:")
        assert prompts.questions[axis] in text
        assert ("tie" in text.split("SS")[1]) == ties
        assert ("Comparison:" in text) == (form == "explained")
        assert "{" not in text


def test_placeholders_in_outputs_stay_text():
    text = load_prompts("summaries").render(
        Comparison(prompt="{first}", first="{second} {answer}", second="\\1 {prompt} {unknown}"), ties=False
    )
    for part in ("Text:\n{first}\n", "A:\n{second} {answer}\n", "B:\n\\1 {prompt} {unknown}\n"):
        assert part in text


def test_an_axis_without_a_question_is_refused():
    with pytest.raises(InputError, match="no question for the axis 'humour'; there are overall, accuracy"):
        load_prompts("summaries").render(Comparison(prompt="", first="", second="", axis="humour"), ties=False)


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    prompts = load_prompts(file)
    found = prompts.render(Comparison(prompt="p", first="x", second="y"), ties=False, form="direct")
    assert found == 'Which is better? p A: x B: y Preferred: "A" or "B"'
    file.write_text(GOOD.replace("better", "best"))
    assert load_prompts(file).fingerprint() != prompts.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{first}", "{frist}", "field 'text': unknown {frist}"),
        ("{first}", "", r"field 'text': needs {first} once, has it 0 times"),
        ("{first}", "{first} {first}", r"field 'text': needs {first} once, has it 2 times"),
        (
            'direct = "Preferred: {choices}"',
            'direct = "Answer: {choices}"',
            "field 'direct': must ask for 'Preferred:'",
        ),
        ('direct = "Preferred: {choices}"', "", "field 'direct': missing"),
        ('direct = "Preferred: {choices}"', "direct = 3", "field 'direct': expected words, is 3"),
        ('overall = "Which is better?"', "", "field 'questions': expected a table"),
        ('overall = "Which is better?"', 'overall = " "', "field 'overall': expected words"),
        ("explained =", "explaind =", "unknown field 'explaind'; did you mean 'explained'"),
        ("[questions]", "[questions", "not a TOML file"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, old, new, message):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_prompts(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"no such file, and none of the built-in names \(summaries, "):
        load_prompts("nowhere.toml")
