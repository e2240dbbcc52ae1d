"""Windows of plain text: every token but a document's first is a target once, in rows no longer than asked for."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data import Counters, Records, load_records, make_batches, text_example, text_windows
from jaxalign.errors import InputError
from tests.data import toy
from tests.data.chain_text import BARE, ENCODERS, GPT2, LLAMA

TEXTS = st.text("aeTh .:\n", min_size=1, max_size=60).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(2, 20), st.sampled_from(sorted(ENCODERS)))
def test_every_token_but_the_first_is_a_target_once(texts, length, name):
    encoder = ENCODERS[name]
    records = [{"text": text} for text in texts]
    windows, counters = text_windows(records, encoder, length=length)
    assert counters.as_dict() == {"rows_read": len(texts), "examples": len(windows)}
    for index, record in enumerate(records):
        whole = text_example(record, encoder)  # BOS, text, EOS, all but the first a target
        own = [window for window in windows if window.record_id == index]
        assert np.concatenate([window.targets for window in own]).tolist() == whole.targets.tolist()
        seen = own[0].tokens.tolist()
        for window in own[1:]:
            assert window.tokens[0] == seen[-1]  # what predicts the first target
            seen += window.tokens[1:].tolist()
        assert seen == whole.tokens.tolist()
        assert all(len(window.tokens) == length for window in own[:-1])
        assert 2 <= len(own[-1].tokens) <= length
        assert len(own) == -(-(len(seen) - 1) // (length - 1))
    for window in windows:
        count = len(window.tokens)
        assert window.positions.tolist() == list(range(count))
        assert window.source_index.tolist() == list(range(count - 1))
        assert window.targets.tolist() == window.tokens[1:].tolist()
        assert not window.branch.any()
        assert window.sequences == 1
        assert window.pairs.shape == (0, 2)
        assert all(getattr(window, field).dtype == np.int32 for field in ("tokens", "targets", "source_index"))


def test_token_by_token():
    windows, _ = text_windows([{"text": "The film is good"}, {"text": "The"}], LLAMA, length=4)
    assert [toy.show(LLAMA, window) for window in windows] == [
        "<s> [▁The] [▁film] [▁is]",
        "▁is [▁good] [</s>]",
        "<s> [▁The] [</s>]",
    ]
    assert [window.record_id for window in windows] == [0, 0, 1]
    windows, _ = text_windows([{"text": "The film is good"}], GPT2, length=3)
    assert [toy.show(GPT2, window) for window in windows] == ["The [Ġfilm] [Ġis]", "Ġis [Ġgood] [<|endoftext|>]"]


@pytest.mark.parametrize("text", ["The film</s>", "<s> The film", "<s> The film</s></s>"])
def test_bos_and_eos_once(text):
    (window,), _ = text_windows([{"text": text}], LLAMA, length=9)
    assert toy.show(LLAMA, window).split()[-1] == "[</s>]"
    assert window.tokens.tolist().count(LLAMA.bos) == window.tokens.tolist().count(LLAMA.eos) == 1


def test_a_document_that_fits_exactly_is_one_window():
    count = len(text_example({"text": "The film is good"}, BARE).tokens)
    for length, windows in ((count, 1), (count + 1, 1), (count - 1, 2)):
        assert len(text_windows([{"text": "The film is good"}], BARE, length=length)[0]) == windows


def test_packed_windows_are_all_there():
    records = [{"text": "again and again " * n} for n in range(1, 9)]
    windows, _ = text_windows(records, GPT2, length=16)
    source = make_batches(windows, batch_size=3, num_epochs=1, pack=True, max_length=16)
    batches = [source[k] for k in range(len(source))]
    assert {batch.tokens.shape for batch in batches} == {(3, 16)}
    learnt = collections.Counter(int(token) for batch in batches for token in batch.targets[batch.target_mask])
    whole = collections.Counter(int(t) for record in records for t in text_example(record, GPT2).targets)
    assert learnt == whole


BAD = [
    ({"text": " "}, "field 'text': empty text"),
    ({"text": None}, "missing field 'text'"),
    ({"prompt": "a"}, "missing field 'text'"),
    ({"text": ["a"]}, "field 'text': expected a string, got list"),
    ({"text": "\ud800"}, "field 'text': half of a surrogate pair"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=range(len(BAD)))
def test_bad_rows_name_place_and_field(record, message):
    with pytest.raises(InputError) as error:
        text_windows([{"text": "a"}, record], GPT2, length=8)
    assert str(error.value).startswith(f"row 2: {message}")
    records = Records([{"text": "a"}, record], ["a.jsonl: row 4", "a.jsonl: row 9"], Counters(rows_read=10))
    with pytest.raises(InputError, match=r"^a\.jsonl: row 9: "):
        text_windows(records, GPT2, length=8)
    windows, counters = text_windows(records, GPT2, length=8, on_bad_row="skip")
    assert len(windows) == 1
    assert counters.as_dict() == {"rows_read": 10, "examples": 1, "skipped: no usable text": 1}
    with pytest.raises(
        InputError, match=r"^no text to learn from \(rows_read 1, examples 0, skipped: no usable text 1"
    ):
        text_windows([record], GPT2, length=8, on_bad_row="skip")


def test_what_was_skipped_before_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{\n{"text": "The film"}\n')
    records = load_records(tmp_path / "a.jsonl", on_bad_row="skip")
    _, counters = text_windows(records, GPT2, length=8)
    assert counters.as_dict() == {"rows_read": 3, "examples": 2, "skipped: invalid JSON": 1}
    assert records.counters.examples == 0


@pytest.mark.parametrize("length", [1, 0, -3])
def test_windows_have_room_for_two_tokens(length):
    with pytest.raises(InputError, match=f"^windows of {length} tokens: there must be room for at least 2"):
        text_windows([{"text": "a"}], GPT2, length=length)


def test_a_text_of_nothing_but_special_tokens_teaches_nothing():
    with pytest.raises(InputError, match="no text to learn from"):
        text_windows([{"text": "<|endoftext|>"}], GPT2, length=8)
