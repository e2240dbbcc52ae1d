"""Prompts: lengths, the chat form, separate tokenisation, determinism."""

import re

import pytest

from experiments.assets.prompts import REVIEW_REQUEST, prefix_prompts
from jaxalign.errors import InputError


class Words:
    """A tokenizer of words and newlines; words it does not know become id 0, which decodes to a mark."""

    def __init__(self, texts, quotes=False):
        self.words = ["<unk>", "\n", *sorted({w for t in texts for w in self._split(t)})]
        self.quotes = quotes

    @staticmethod
    def _split(text):
        words = text.split(" ")
        return [words[0], *(" " + word for word in words[1:])]

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        if self.quotes:
            text = text.replace("'", "’")
        pieces = [p for part in re.findall(r"\n|[^\n]+", text) for p in ([part] if part == "\n" else self._split(part))]
        return [self.words.index(p) if p in self.words else 0 for p in pieces]

    def decode(self, ids):
        return "".join("\ufffd" if i == 0 else self.words[i] for i in ids)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        return f"<user>\n{messages[0]['content']}\n<assistant>\n"


REVIEWS = [f"one two three four five six seven eight nine ten {i}" for i in range(300)]


def test_raw_prompts_are_a_newline_and_two_to_eight_tokens():
    tokenizer = Words(REVIEWS)
    prompts = prefix_prompts(tokenizer, REVIEWS, 0)
    assert {len(p.ids) - 1 for p in prompts} == set(range(2, 9))
    assert all(p.ids[0] == 1 and p.text == "\n" + p.opening for p in prompts)
    assert all(review.startswith(p.opening) for review, p in zip(REVIEWS, prompts, strict=True))
    assert all(tokenizer.decode(p.ids) == p.text for p in prompts)


def test_no_lead():
    prompts = prefix_prompts(Words(REVIEWS), REVIEWS[:5], 0, low=3, high=3, lead="")
    assert [p.text for p in prompts] == ["one two three"] * 5


def test_chat_prompts_prefill_the_assistant():
    request = Words(["<user>", "<assistant>", REVIEW_REQUEST, *REVIEWS])
    prompts = prefix_prompts(request, REVIEWS, 0, chat=REVIEW_REQUEST)
    assert prompts[0].text == f"<user>\n{REVIEW_REQUEST}\n<assistant>\n{prompts[0].opening}"
    assert request.decode(prompts[0].ids) == prompts[0].text
    raw = prefix_prompts(request, REVIEWS, 0)
    assert [p.opening for p in raw] == [p.opening for p in prompts]


def test_a_seed_and_a_place_decide_the_length():
    tokenizer = Words(REVIEWS)
    first = prefix_prompts(tokenizer, REVIEWS, 0)
    assert first[:50] == prefix_prompts(tokenizer, REVIEWS[:50], 0)
    assert first != prefix_prompts(tokenizer, REVIEWS, 1)


def test_openings_that_do_not_decode_to_themselves_are_left_out():
    tokenizer = Words(REVIEWS)
    prompts = prefix_prompts(tokenizer, ["unknown words here three", "one two", REVIEWS[0]], 0, low=3, high=3)
    assert [p.opening for p in prompts] == ["one two three"]
    with pytest.raises(InputError, match="no review gives a prompt"):
        prefix_prompts(tokenizer, ["unknown words here"], 0, low=2, high=2)


def test_curly_quotes_of_a_tokenizer_become_straight():
    tokenizer = Words(["it’s a film"], quotes=True)
    assert [p.opening for p in prefix_prompts(tokenizer, ["it's a film"], 0, low=2, high=2)] == ["it's a"]


def test_bad_lengths_are_refused():
    with pytest.raises(InputError, match=r"prefix lengths 5\.\.2"):
        prefix_prompts(Words(REVIEWS), REVIEWS, 0, low=5, high=2)
