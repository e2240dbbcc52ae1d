"""Length limits: what is cut, what is kept, what is counted, what is refused."""

import pytest

from jaxalign.data import (
    Encoder,
    Truncation,
    build_examples,
    completion_example,
    preference_example,
    prompt_tokens,
    text_example,
)
from jaxalign.errors import InputError
from tests.data import toy

GPT2 = Encoder(toy.byte_level())
LLAMA = Encoder(toy.metaspace())
# 8 tokens of prompt (9 with BOS), 4 + EOS and 1 + EOS of answers.
PAIR = {"prompt": "0" * 8, "chosen": "1" * 4, "rejected": "2"}


def parts(encoder, example):
    return [encoder.decode(example.tokens[example.branch == k]) for k in range(int(example.branch.max()) + 1)]


def test_a_text_longer_than_the_model_is_ours_to_say_something_about(monkeypatch):
    from transformers.utils import logging

    said = []
    monkeypatch.setattr(logging.get_logger("transformers.tokenization_utils_base"), "warning", said.append)
    tokenizer = toy.byte_level.__wrapped__()
    tokenizer.model_max_length = 8
    tokenizer.encode("0" * 9)
    assert len(said) == 1  # of "indexing errors" that an encoder's users do not meet
    tokenizer = toy.byte_level.__wrapped__()
    tokenizer.model_max_length = 8
    assert len(completion_example(PAIR | {"completion": "1"}, Encoder(tokenizer)).tokens) > 8
    assert len(said) == 1


def test_no_limit_changes_nothing():
    example = preference_example(PAIR, GPT2)
    assert parts(GPT2, example) == ["0" * 8, "1111<|endoftext|>", "2<|endoftext|>"]
    _, counters = build_examples([PAIR], GPT2, truncation=Truncation(max_length=13))
    assert not counters.truncated


def test_keep_end_cuts_the_prompt_on_the_left_and_keeps_bos():
    policy = Truncation(max_prompt_length=3, prompt="keep_end")
    record = {"prompt": "12345678", "completion": "9"}
    assert parts(GPT2, completion_example(record, GPT2, truncation=policy)) == ["678", "9<|endoftext|>"]
    example = completion_example(record, LLAMA, truncation=policy)
    assert example.tokens[0] == LLAMA.bos
    assert LLAMA.decode(example.tokens[:3]).endswith("78")
    assert prompt_tokens(record, LLAMA, truncation=policy) == example.tokens[example.branch == 0].tolist()
    _, counters = build_examples([record, {**record, "prompt": "1"}], GPT2, truncation=policy)
    assert counters.as_dict() == {"rows_read": 2, "examples": 2, "truncated: prompt: keep_end": 1}


def test_a_cut_answer_gets_no_eos_and_the_other_keeps_its_own():
    example = preference_example(PAIR, GPT2, truncation=Truncation(max_length=11, max_prompt_length=8))
    assert parts(GPT2, example) == ["0" * 8, "111", "2<|endoftext|>"]
    # Cut exactly before EOS: still none.
    example = preference_example(PAIR, GPT2, truncation=Truncation(max_length=12, max_prompt_length=8))
    assert parts(GPT2, example) == ["0" * 8, "1111", "2<|endoftext|>"]
    _, counters = build_examples([PAIR], GPT2, truncation=Truncation(max_length=12, max_prompt_length=8))
    assert counters.truncated == {"completion: cut": 1}


def test_without_a_prompt_limit_the_prompt_gives_way_down_to_half():
    # Room for the longest answer (5) first, but never less than half of max_length for the prompt.
    example = preference_example(PAIR, GPT2, truncation=Truncation(max_length=12, prompt="keep_end"))
    assert parts(GPT2, example) == ["0" * 7, "1111<|endoftext|>", "2<|endoftext|>"]
    example = preference_example(PAIR, GPT2, truncation=Truncation(max_length=8, prompt="keep_end"))
    assert parts(GPT2, example) == ["0" * 4, "1111", "2<|endoftext|>"]


def test_every_answer_survives_any_limit():
    for length in range(2, 16):
        example = preference_example(PAIR, GPT2, truncation=Truncation(max_length=length, prompt="keep_end"))
        assert {0, 1} == set(example.target_sequence.tolist())
        assert example.positions.max() < length


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Truncation(max_prompt_length=6), r"field 'prompt' has 8 tokens, room is for 6 \(max_prompt_length 6\)"),
        (
            Truncation(max_length=12),
            r"field 'prompt' has 8 tokens, room is for 7 beside an answer of 5 \(max_length 12\)",
        ),
        (
            Truncation(max_length=12, max_prompt_length=8, completion="error"),
            "field 'chosen' has 5 tokens after 8 of its prompt, more than max_length 12",
        ),
    ],
)
def test_error_names_row_field_and_lengths(policy, message):
    with pytest.raises(InputError, match=f"^row 2: {message}; "):
        build_examples([{**PAIR, "prompt": "0", "chosen": "1"}, PAIR], GPT2, truncation=policy)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Truncation(max_prompt_length=6, prompt="drop"), "prompt over the limit"),
        (Truncation(max_length=12, max_prompt_length=8, completion="drop"), "completion over the limit"),
    ],
)
def test_drop_leaves_the_record_out_and_counts_it(policy, reason):
    short = {**PAIR, "prompt": "0", "chosen": "1"}
    examples, counters = build_examples([short, PAIR, short], GPT2, truncation=policy)
    assert [example.record_id for example in examples] == [0, 2]
    assert counters.skipped == {reason: 1}
    assert not counters.truncated


def test_text_and_conversations_are_cut_at_the_end():
    example = text_example({"text": "0" * 9}, GPT2, truncation=Truncation(max_length=4))
    assert GPT2.decode(example.tokens) == "0000"
    chat = {"messages": [{"role": "user", "content": "0" * 9}, {"role": "assistant", "content": "1"}]}
    with pytest.raises(InputError, match="record 0: field 'messages': no supervised token is left"):
        text_example(chat, GPT2, truncation=Truncation(max_length=8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length is 1, must be at least 2"),
        ({"max_prompt_length": 0}, "max_prompt_length is 0, must be at least 1"),
        ({"max_length": 8, "max_prompt_length": 8}, "leaves no room for an answer"),
        ({"prompt": "keep_start"}, "truncation policy of the prompt is 'keep_start', must be one of error, keep_end"),
        ({"completion": "keep"}, "truncation policy of the completion is 'keep'"),
    ],
)
def test_bad_policies(options, message):
    with pytest.raises(InputError, match=message):
        Truncation(**options)
