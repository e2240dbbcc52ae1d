"""Sampled responses as examples."""

import copy

import numpy as np
import pytest

from jaxalign import data
from jaxalign.errors import InputError
from tests.recipes import toy

CHAT = (
    "{% for m in messages %}{{ ' the' if m['role'] == 'assistant' else ' it' }}{{ m['content'] }}<pad>{% endfor %}"
    "{% if add_generation_prompt %} the{% endif %}"
)


@pytest.fixture(scope="module")
def chat():
    tokenizer = copy.deepcopy(toy.tokenizer())
    tokenizer.chat_template = CHAT  # its turns end with <pad>, not with the EOS
    return tokenizer


@pytest.mark.parametrize("finished", [True, False])
def test_it_is_what_a_record_of_the_same_texts_is(finished):
    record = {"prompt": " good film", "completion": " was fun", "finished": finished}
    expected = data.completion_example(record, toy.tokenizer())
    found = data.response_example(record["prompt"], record["completion"], toy.tokenizer(), finished=finished)
    for name in ("tokens", "positions", "branch", "source_index", "targets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("prompt", [" good film", [{"role": "user", "content": "good film"}]], ids=["text", "chat"])
def test_a_response_that_says_nothing_is_its_end(prompt, chat):
    example = data.response_example(prompt, "", chat)
    end = chat.eos_token_id if isinstance(prompt, str) else chat.pad_token_id
    assert example.targets.tolist() == [end]
    with pytest.raises(InputError, match=r"row 4: field 'completion': no supervised token is left"):
        data.response_example(prompt, "", chat, finished=False, place="row 4")


def test_neither_prompt_nor_response():
    with pytest.raises(InputError, match="no supervised token"):  # nothing predicts the EOS
        data.response_example("", "", toy.tokenizer())


def test_what_is_no_text():
    with pytest.raises(InputError, match="row 4: the response is a list, not a string"):
        data.response_example("a", [], toy.tokenizer(), place="row 4")
    with pytest.raises(InputError, match="row 4: field 'prompt': expected a string or a list of messages, got int"):
        data.response_example(3, "a", toy.tokenizer(), place="row 4")


def test_stop_tokens(chat):
    assert data.stop_tokens("a", chat) == (chat.eos_token_id,)
    messages = [{"role": "user", "content": "good film"}]
    assert set(data.stop_tokens(messages, chat)) == {chat.eos_token_id, chat.pad_token_id}
