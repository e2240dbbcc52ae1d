"""Messages through chat templates: assistant turns are supervised exactly, with the template's own end of turn."""

import pytest

from jaxalign.data import (
    Encoder,
    completion_example,
    preference_example,
    prompt_tokens,
    ranked_example,
    text_example,
)
from jaxalign.errors import InputError
from tests.data import toy

USER, AGAIN = {"role": "user", "content": "hello"}, {"role": "user", "content": "a good film?"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "no"}
CHAT = {"messages": [USER, YES, AGAIN, NO]}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_chatml_supervises_assistant_turns_with_their_end():
    encoder = Encoder(toy.byte_level())
    example = text_example(CHAT, encoder)
    assert toy.show(encoder, example) == (
        "<|im_start|> user Ċ he l lo <|im_end|> Ċ <|im_start|> a ssistant Ċ [Y] [es] [.] [<|im_end|>] Ċ "
        "<|im_start|> user Ċ a Ġgood Ġfilm ? <|im_end|> Ċ <|im_start|> a ssistant Ċ [no] [<|im_end|>]"
    )
    rendered = encoder.tokenizer.apply_chat_template(CHAT["messages"], tokenize=False)
    assert encoder.decode(example.tokens) + "\n" == rendered
    # What follows the last assistant turn teaches nothing and is left out.
    assert text_example({"messages": [*CHAT["messages"], USER]}, encoder).tokens.tolist() == example.tokens.tolist()
    cut = text_example({**CHAT, "finished": False}, encoder)
    assert cut.tokens.tolist() == example.tokens[:-1].tolist()


@pytest.mark.parametrize("tokenizer", [toy.metaspace, toy.llama2])
def test_a_template_that_writes_bos_and_strips_content(tokenizer):
    encoder = Encoder(tokenizer())
    example = text_example({"messages": [USER, assistant(" Yes. ")]}, encoder)
    assert encoder.decode(example.tokens) == "<s> [INST] hello [/INST] Yes. </s>"
    assert encoder.decode(example.targets) == "Yes. </s>"
    assert example.tokens.tolist().count(encoder.bos) == 1
    assert example.targets.tolist().count(encoder.eos) == 1
    whole = text_example(CHAT, encoder)
    assert encoder.decode(whole.tokens) == ("<s> [INST] hello [/INST] Yes. </s><s> [INST] a good film? [/INST] no </s>")
    assert whole.targets.tolist().count(encoder.eos) == 2


def test_a_template_without_end_of_turn_ends_with_eos_once():
    encoder = Encoder(toy.byte_level(toy.PLAIN))
    assert toy.show(encoder, text_example(CHAT, encoder)) == (
        "user : Ġhello Ċ a ssistant : Ġ [Y] [es] [.] Ċ user : Ġa Ġgood Ġfilm ? Ċ a ssistant : Ġ [no] [<|endoftext|>]"
    )


def test_bos_is_added_where_the_template_forgets_it():
    encoder = Encoder(toy.metaspace(toy.PLAIN))
    tokens = text_example(CHAT, encoder).tokens.tolist()
    assert tokens[0] == encoder.bos
    assert tokens.count(encoder.bos) == 1


def test_preference_of_messages_equals_its_sequences():
    encoder = Encoder(toy.byte_level())
    example = preference_example({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, encoder)
    assert toy.show(encoder, example) == (
        "<|im_start|> user Ċ he l lo <|im_end|> Ċ <|im_start|> a ssistant Ċ\n"
        "[Y] [es] [.] [<|im_end|>]\n[no] [<|im_end|>]"
    )
    same = preference_example({"chosen": [USER, YES], "rejected": [USER, NO]}, encoder)
    assert same.tokens.tolist() == example.tokens.tolist()
    # A string answers a prompt of messages as the assistant.
    strings = preference_example({"prompt": [USER], "chosen": "Yes.", "rejected": "no"}, encoder)
    assert strings.tokens.tolist() == example.tokens.tolist()
    ranked = ranked_example({"prompt": [USER], "responses": ["Yes.", [NO]], "ratings": [1, 0]}, encoder)
    assert ranked.tokens.tolist() == example.tokens.tolist()
    conversation = text_example({"messages": [USER, YES]}, encoder)
    assert conversation.tokens.tolist() == example.tokens[example.branch < 2].tolist()
    assert conversation.targets.tolist() == example.targets[example.target_sequence == 0].tolist()


def test_an_answer_of_several_turns():
    encoder = Encoder(toy.byte_level())
    example = completion_example({"prompt": [USER], "completion": [YES, AGAIN, NO]}, encoder)
    whole = text_example(CHAT, encoder)
    assert example.tokens.tolist() == whole.tokens.tolist()
    assert example.targets.tolist() == whole.targets.tolist()
    assert example.source_index.tolist() == whole.source_index.tolist()


def test_a_prompt_that_opens_the_answer():
    encoder = Encoder(toy.byte_level())
    record = {"prompt": [USER, assistant("The film")], "chosen": " is good", "rejected": [assistant(" was bad")]}
    example = preference_example(record, encoder)
    assert toy.show(encoder, example) == (
        "<|im_start|> user Ċ he l lo <|im_end|> Ċ <|im_start|> a ssistant Ċ The Ġfilm\n"
        "[Ġis] [Ġgood] [<|im_end|>]\n[Ġwas] [Ġbad] [<|im_end|>]"
    )
    assert prompt_tokens(record, encoder) == example.tokens[example.branch == 0].tolist()
    with pytest.raises(InputError, match="the prompt ends inside an assistant message"):
        completion_example({"prompt": record["prompt"], "completion": [USER, YES]}, encoder)


def test_a_template_that_writes_a_thought_before_the_answer():
    template = toy.CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    encoder = Encoder(toy.byte_level(template))
    example = completion_example({"prompt": [USER], "completion": [assistant("n")]}, encoder)
    assert encoder.decode(example.targets) == "<think>\n\n</think>\n\nn<|im_end|>"


def test_what_templates_cannot_do_is_an_error_of_the_row():
    unstable = Encoder(toy.byte_level(toy.UNSTABLE))
    with pytest.raises(InputError, match="record 0: the chat template is not prefix-stable at message 2"):
        text_example(CHAT, unstable)
    upper = Encoder(toy.byte_level(toy.CHATML.replace("m['content']", "m['content'] | upper")))
    with pytest.raises(InputError, match="record 0: the chat template changes the text of an assistant message"):
        text_example(CHAT, upper)
    strict = Encoder(toy.byte_level("{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InputError, match="record 0: the chat template refuses the messages: roles must alternate"):
        text_example(CHAT, strict)
    with pytest.raises(InputError, match="record 0: the chat template refuses the messages: "):
        text_example(CHAT, Encoder(toy.no_bos()))
