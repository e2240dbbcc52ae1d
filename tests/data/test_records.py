"""The record formats: what each field must hold, and what a bad one says."""

import pytest

from jaxalign.data import build_examples, record_kind
from jaxalign.data._records import split_implicit_prompt
from jaxalign.errors import InputError
from tests.data import toy

USER = {"role": "user", "content": "hello"}
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "no"}


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": "a", "label": 1}, "text"),
        ({"messages": [USER, YES]}, "messages"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
        ({"prompt": "a", "completion": "b", "label": None}, "completion"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "a", "responses": [], "ratings": []}, "ranked"),
        ({"prompt": "a"}, "prompt"),
    ],
)
def test_kind_goes_by_the_fields(record, kind):
    assert record_kind(record) == kind


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
RANKED = {"prompt": "a", "responses": ["b", "c"], "ratings": [1, 0]}
COMPLETION = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "missing field: needs text, messages, .*; it has: none"),
        ({"question": "a"}, "missing field: .*; it has: question"),
        ({"label": True}, r"missing field: .*; it has: label$"),
        ({"label": True, "prompts": "a"}, r"; did you mean 'prompt' by 'prompts'\?$"),
        ("text", "expected an object, got str"),
        ({"completion": "b"}, "missing field 'prompt'"),
        ({"prompt": "a"}, "missing field 'completion'"),
        ({**COMPLETION, "completion": ""}, "field 'completion': empty completion"),
        ({**COMPLETION, "completion": " \n"}, "field 'completion': empty completion"),
        ({**COMPLETION, "completion": 3}, "field 'completion': expected a string or a list of messages, got int"),
        ({**COMPLETION, "prompt": 3.5}, "field 'prompt': expected a string or a list of messages, got float"),
        ({**COMPLETION, "prompt": []}, "field 'prompt': empty list of messages"),
        ({**COMPLETION, "prompt": ["a"]}, "field 'prompt': message 1 is a str, not an object"),
        ({**COMPLETION, "prompt": [{"role": "user"}]}, "field 'prompt': 'content' of message 1 is missing"),
        ({**COMPLETION, "prompt": [{"role": 1, "content": "a"}]}, "'role' of message 1 is a int, not a string"),
        ({**COMPLETION, "completion": [YES]}, "field 'completion' is a list of messages, but 'prompt' is a string"),
        ({**COMPLETION, "completion": [USER]}, "field 'completion': the last message is by 'user', not 'assistant'"),
        ({**COMPLETION, "completion": "\ud800"}, "field 'completion': half of a surrogate pair"),
        ({**COMPLETION, "finished": "yes"}, "field 'finished': expected true or false, got 'yes'"),
        ({**COMPLETION, "label": "good"}, "field 'label': expected true or false, got 'good'"),
        ({"text": ["a"]}, "field 'text': expected a string, got list"),
        ({"text": " "}, "field 'text': empty text"),
        ({"messages": "a"}, "field 'messages': expected a list of messages, got str"),
        ({"messages": [USER]}, "field 'messages': no message by 'assistant'"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "field 'messages': empty completion"),
        ({"prompt": "a", "chosen": "b"}, "missing field 'rejected'"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "missing field 'chosen'"),
        ({**PAIR, "rejected": ""}, "field 'rejected': empty completion"),
        ({**PAIR, "margin": "big"}, "field 'margin': expected a finite number, got 'big'"),
        ({**PAIR, "margin": float("inf")}, "field 'margin': expected a finite number, got inf"),
        ({**PAIR, "chosen_finished": 2}, "field 'chosen_finished': expected true or false, got 2"),
        ({"chosen": "a", "rejected": [YES]}, "one is a string, the other a list of messages"),
        ({"chosen": [USER, YES], "rejected": [NO, YES]}, "missing field 'prompt', and .* share no first message"),
        ({"prompt": "a", "responses": ["b", "c"]}, "missing field 'ratings'"),
        ({**RANKED, "responses": "b"}, "field 'responses': expected a list, got str"),
        ({**RANKED, "responses": ["b"]}, "field 'responses': needs at least 2 answers, has 1"),
        ({**RANKED, "responses": ["b", ""]}, "field 'responses': empty completion"),
        ({**RANKED, "ratings": [1]}, "field 'ratings': 1 ratings for 2 responses"),
        ({**RANKED, "ratings": [1, True]}, "field 'ratings': expected a finite number, got True"),
        ({**RANKED, "finished": [True]}, "field 'finished': expected a list of 2 booleans"),
    ],
)
def test_bad_fields_name_row_and_field(record, message):
    with pytest.raises(InputError, match=f"^row 2: .*{message}") as error:
        build_examples([COMPLETION, record], toy.byte_level())
    assert "\n" not in str(error.value)
    examples, counters = build_examples([COMPLETION, record, COMPLETION], toy.byte_level(), on_bad_row="skip")
    assert [example.record_id for example in examples] == [0, 2]
    assert (counters.rows_read, counters.examples, counters.skipped.total()) == (3, 2, 1)


def test_a_required_kind_makes_its_fields_required():
    with pytest.raises(InputError, match="row 1: missing field 'chosen'"):
        build_examples([COMPLETION], toy.byte_level(), kind="preference")
    with pytest.raises(InputError, match="row 1: missing field 'text'"):
        build_examples([COMPLETION], toy.byte_level(), kind="text")
    with pytest.raises(InputError, match="row 1: missing field 'label'"):
        build_examples([COMPLETION], toy.byte_level(), kind="unpaired")
    with pytest.raises(InputError, match="kind of record is 'pairs', must be one of text"):
        build_examples([COMPLETION], toy.byte_level(), kind="pairs")  # type: ignore[arg-type]


def test_nothing_left_is_an_error_that_says_what_was_skipped():
    with pytest.raises(InputError, match=r"nothing to train on .*skipped: missing field 'prompt' 2"):
        build_examples([{"completion": "a"}] * 2, toy.byte_level(), kind="completion", on_bad_row="skip")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        # Anthropic-HH: up to the last "\n\nAssistant:" they share, even where the answers begin alike.
        (
            "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: really?\n\nAssistant: The film is good",
            "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: really?\n\nAssistant: The film is bad",
            "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: really?\n\nAssistant:",
        ),
        # The dialogues part earlier: the later turns belong to the answers.
        (
            "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: one?\n\nAssistant: a",
            "\n\nHuman: hi\n\nAssistant: no\n\nHuman: two?\n\nAssistant: b",
            "\n\nHuman: hi\n\nAssistant:",
        ),
        # Not HH: no word is cut, and an answer that the other begins with stays.
        ("Q: good? A: yes", "Q: good? A: yesterday", "Q: good? A:"),
        ("a b.", "a b. and more", "a"),
        ("one\n\n two", "one\n\n three", "one"),
        ("yes", "no", ""),
    ],
)
def test_implicit_prompts(chosen, rejected, prompt):
    found, first, second = split_implicit_prompt(chosen, rejected, "row 1")
    assert found == prompt
    assert prompt + first == chosen
    assert prompt + second == rejected
    assert first.strip()
    assert second.strip()


def test_implicit_prompt_of_messages():
    first, second = [USER, YES, USER, YES], [USER, YES, USER, NO]
    assert split_implicit_prompt(first, second, "row 1") == (first[:3], [YES], [NO])
    # One is the beginning of the other: each keeps an answer.
    assert split_implicit_prompt(first[:2], first, "row 1") == ([USER], [YES], [YES, USER, YES])
