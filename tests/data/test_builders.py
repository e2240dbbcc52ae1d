"""Goldens: decoded tokens and masks side by side ([x] is supervised), for every format and kind of tokenizer."""

import numpy as np
import pytest

from jaxalign.data import (
    Encoder,
    Truncation,
    answers_example,
    build_examples,
    completion_example,
    fingerprint,
    preference_example,
    prompt_tokens,
    ranked_example,
    text_example,
    unpaired_example,
    unshare,
)
from jaxalign.errors import InputError
from tests.data import toy

GPT2 = Encoder(toy.byte_level())
LLAMA = Encoder(toy.metaspace())
PAIR = {"prompt": "The film", "chosen": " is good", "rejected": " was"}

# Six lines by hand in the format of the Anthropic-HH files.
HH = {
    "chosen": "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant: A good film.",
    "rejected": "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant: A bad story.",
}


def test_text():
    assert toy.show(GPT2, text_example({"text": "The film is good"}, GPT2)) == (
        "The [Ġfilm] [Ġis] [Ġgood] [<|endoftext|>]"
    )
    assert toy.show(LLAMA, text_example({"text": "The film"}, LLAMA)) == "<s> [▁The] [▁film] [</s>]"
    cut = text_example({"text": "The film", "finished": False}, LLAMA)
    assert toy.show(LLAMA, cut) == "<s> [▁The] [▁film]"
    assert cut.sequences == 1
    assert not cut.branch.any()
    assert not cut.target_sequence.any()


def test_completion():
    example = completion_example({"prompt": "The answer is ", "completion": "yes"}, GPT2)
    assert toy.show(GPT2, example) == "The Ġanswer Ġis Ġ\n[yes] [<|endoftext|>]"
    assert example.positions.tolist() == list(range(6))
    assert example.source_index.tolist() == [3, 4]
    cut = completion_example({"prompt": "The answer", "completion": " is", "finished": False}, LLAMA)
    assert toy.show(LLAMA, cut) == "<s> ▁The ▁answer\n[▁is]"


def test_preference_shares_its_prompt():
    example = preference_example({**PAIR, "margin": 0.5, "rejected_finished": False}, GPT2)
    assert toy.show(GPT2, example) == "The Ġfilm\n[Ġis] [Ġgood] [<|endoftext|>]\n[Ġwas]"
    assert example.positions.tolist() == [0, 1, 2, 3, 4, 2]
    assert example.branch.tolist() == [0, 0, 1, 1, 1, 2]
    assert example.source_index.tolist() == [1, 2, 3, 1]  # the first target of either answer: the last prompt token
    assert example.target_sequence.tolist() == [0, 0, 0, 1]
    assert example.pairs.tolist() == [[0, 1]]
    assert example.pair_extras["margin"].tolist() == [0.5]
    assert example.sequences == 2
    assert all(
        getattr(example, name).dtype == np.int32
        for name in ("tokens", "positions", "branch", "source_index", "targets", "target_sequence", "pairs")
    )


def test_hh_rows():
    example = preference_example(HH, GPT2)
    prompt, chosen, rejected = (GPT2.decode(example.tokens[example.branch == k]) for k in range(3))
    assert prompt == "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant:"
    assert chosen == " A good film.<|endoftext|>"
    assert rejected == " A bad story.<|endoftext|>"
    assert prompt_tokens(HH, GPT2) == example.tokens[example.branch == 0].tolist()
    preferred = completion_example(HH, GPT2, answer="chosen")
    assert GPT2.decode(preferred.targets) == chosen
    assert preferred.sequences == 1
    worse = completion_example({**HH, "rejected_finished": False}, GPT2, answer="rejected")
    assert GPT2.decode(worse.targets) == " A bad story."


def test_ranked():
    record = {"prompt": "The", "responses": [" film", " answer is", " story"], "ratings": [2, 0.5, 2]}
    example = ranked_example({**record, "finished": [True, False, True]}, GPT2)
    assert toy.show(GPT2, example) == ("The\n[Ġfilm] [<|endoftext|>]\n[Ġanswer] [Ġis]\n[Ġstory] [<|endoftext|>]")
    assert example.pairs.tolist() == [[0, 1], [2, 1]]  # the tie gives no pair
    assert example.sequences == 3
    tied = {**record, "ratings": [1, 1, 1]}
    with pytest.raises(InputError, match="record 0: field 'ratings': all are equal"):
        ranked_example(tied, GPT2)
    examples, counters = build_examples([record, tied], GPT2)
    assert len(examples) == 1
    assert counters.skipped == {"all ratings equal": 1}


def test_unpaired():
    example = unpaired_example({"prompt": "The", "completion": " film", "label": 0}, GPT2)
    assert toy.show(GPT2, example) == "The\n[Ġfilm] [<|endoftext|>]"
    assert example.sequence_extras["label"].dtype == bool
    assert example.sequence_extras["label"].tolist() == [False]
    assert example.pairs.shape == (0, 2)


def test_every_token_prefixing_tokenizer_joins_segments_to_the_text():
    cases = [("The film", " was good"), ("The answer is ", "yes"), ("Human:\n\nAssistant:", " Paris"), ("a\n", "\nb")]
    for tokenizer in (toy.byte_level(), toy.no_bos(), toy.metaspace(), toy.llama2()):
        encoder = Encoder(tokenizer)
        assert encoder.prefixes_space == (tokenizer in (toy.metaspace(), toy.llama2()))
        for prompt, completion in cases:
            example = completion_example({"prompt": prompt, "completion": completion}, encoder)
            ids = [token for token in example.tokens.tolist() if token not in (encoder.bos, encoder.eos)]
            assert encoder.decode(ids) == prompt + completion
            assert encoder.decode([*encoder.raw("a"), *encoder.following(completion)]) == "a" + completion
            assert encoder.decode_following(encoder.following(completion)) == completion


def test_bos_is_put_once_and_only_where_it_is_used():
    record = {"prompt": "<s> The film", "completion": " is good"}
    assert completion_example(record, LLAMA).tokens.tolist().count(LLAMA.bos) == 1
    assert preference_example(PAIR, LLAMA).tokens.tolist().count(LLAMA.bos) == 1
    assert GPT2.bos is None
    assert 0 not in completion_example({"prompt": "The film", "completion": " is"}, GPT2).tokens[:-1]
    forced = Encoder(toy.byte_level(), add_bos=True)
    assert completion_example({"prompt": "The film", "completion": " is"}, forced).tokens[0] == forced.bos
    assert completion_example({"prompt": "The", "completion": " is"}, Encoder(toy.metaspace(), add_bos=False)).tokens[
        0
    ] != (LLAMA.bos)
    with pytest.raises(InputError, match="a BOS is asked for"):
        Encoder(toy.no_bos(), add_bos=True)


def test_an_empty_prompt_is_the_start_token_or_leaves_the_first_token_unsupervised():
    record = {"prompt": "", "chosen": "The film", "rejected": "The answer"}
    # GPT-2 declares a BOS that it does not usually add: here something must predict the first token.
    assert toy.show(GPT2, preference_example(record, GPT2)) == (
        "<|endoftext|>\n[The] [Ġfilm] [<|endoftext|>]\n[The] [Ġanswer] [<|endoftext|>]"
    )
    assert toy.show(LLAMA, preference_example(record, LLAMA)) == "<s>\n[▁The] [▁film] [</s>]\n[▁The] [▁answer] [</s>]"
    written = completion_example({"prompt": "", "completion": "<s> The film"}, LLAMA)
    assert written.tokens.tolist().count(LLAMA.bos) == 1
    bare = Encoder(toy.no_bos())
    example = preference_example(record, bare)
    assert toy.show(bare, example) == "\nThe [Ġfilm] [<|end|>]\nThe [Ġanswer] [<|end|>]"
    assert example.positions.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(InputError, match="record 0: field 'completion': no supervised token is left"):
        completion_example({"prompt": "", "completion": "The", "finished": False}, bare)
    with pytest.raises(InputError, match="field 'prompt' is empty and the tokenizer has no BOS"):
        prompt_tokens({"prompt": ""}, bare)


@pytest.mark.parametrize("tail", ["", "<|endoftext|>", "<|endoftext|><|endoftext|>"])
def test_eos_exactly_once_if_finished_and_never_if_not(tail):
    # pad, BOS and EOS are one id here: no mask may be taken from ids.
    assert toy.byte_level().pad_token_id == toy.byte_level().eos_token_id
    record = {"prompt": "The film", "completion": " is good" + tail}
    whole = completion_example(record, GPT2).targets.tolist()
    assert whole.count(GPT2.eos) == 1
    assert whole[-1] == GPT2.eos
    assert GPT2.eos not in completion_example({**record, "finished": False}, GPT2).targets
    text = text_example({"text": "The film" + tail}, GPT2)
    assert text.targets.tolist().count(GPT2.eos) == 1


def test_unshare_gives_one_row_an_answer():
    example = preference_example(PAIR, GPT2)
    example = example.replace(
        token_extras={"trunk": np.arange(len(example.tokens))[:, None]},
        target_extras={"reference_log_probs": np.arange(len(example.targets), dtype=np.float32)},
    )
    chosen, rejected = unshare(example)
    assert GPT2.decode(chosen.tokens) == "The film is good<|endoftext|>"
    assert GPT2.decode(rejected.tokens) == "The film was<|endoftext|>"
    assert rejected.positions.tolist() == [0, 1, 2, 3]
    assert rejected.source_index.tolist() == [1, 2]
    assert rejected.target_sequence.tolist() == [1, 1]
    assert rejected.token_extras["trunk"][:, 0].tolist() == [0, 1, 5, 6]
    assert rejected.target_extras["reference_log_probs"].tolist() == [3, 4]
    assert len(unshare(text_example({"text": "The film"}, GPT2))) == 1


def test_fingerprint_goes_by_content():
    records = [PAIR, {**PAIR, "prompt": "The story"}]
    examples, _ = build_examples(records, GPT2)
    name = fingerprint(examples)
    assert len(name) == 64
    assert name == fingerprint(build_examples([{**record, "margin": 1.0} for record in records], GPT2)[0])
    assert name != fingerprint(examples[::-1])
    assert name != fingerprint(examples[:1])
    assert name != fingerprint(build_examples(records, LLAMA)[0])
    limited, _ = build_examples(records, GPT2, truncation=Truncation(max_length=4))
    assert name != fingerprint(limited)


def test_a_tokenizer_without_eos_is_refused_unless_one_is_named():
    import copy

    tokenizer = copy.deepcopy(toy.byte_level())
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        Encoder(tokenizer)
    assert Encoder(tokenizer, eos=2).eos == 2


class Letters:
    """The least a tokenizer must be: no transformers, no template, no special texts."""

    bos_token_id, eos_token_id = None, 0

    def encode(self, text, *, add_special_tokens=True):
        return [ord(letter) for letter in text]

    def decode(self, token_ids):
        return "".join(map(chr, token_ids))


def test_any_tokenizer_of_the_protocol_will_do():
    examples, _ = build_examples([PAIR], Letters())
    assert examples[0].targets.tolist() == [*map(ord, " is good"), 0, *map(ord, " was"), 0]
    with pytest.raises(InputError, match="row 1: messages need a tokenizer with a chat template"):
        build_examples([{"messages": [{"role": "assistant", "content": "a"}]}], Letters())


def test_examples_from_sampled_ids_are_those_of_the_same_text():
    example = preference_example(PAIR, GPT2)
    prompt, chosen, rejected = (example.tokens[example.branch == k].tolist() for k in range(3))
    same = answers_example(prompt, [chosen, rejected], record_id=5, pairs=[(0, 1)])
    assert same.record_id == 5
    assert same.pairs.tolist() == [[0, 1]]
    assert fingerprint([same]) == fingerprint([example])
    # Nothing is added: ids without EOS have none, and an empty prompt leaves the first token unsupervised.
    assert answers_example(prompt, [chosen[:-1]]).targets.tolist() == chosen[:-1]
    assert answers_example([], [chosen]).targets.tolist() == chosen[1:]
    for empty in ([], [7]):
        with pytest.raises(ValueError, match="answer 0: no supervised token"):
            answers_example([], [empty])
