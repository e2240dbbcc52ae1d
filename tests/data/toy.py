"""Small real tokenizers, made in a moment, of the kinds that behave differently."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxalign.data import Example

SENTENCES = [
    "The film was good and the actors were better than the story.",
    "Human: what is the capital of France? Assistant: Paris is the capital of France.",
    "You are a helpful assistant. The answer is yes, the answer is no.",
    "A bad film is long; a good film is short.\nPlease watch it\n\nagain and again.",
    "user system assistant question answer hello world 0 1 2 3 4 5 6 7 8 9",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The Llama 2 style: BOS written by the template, a space before the answer, content stripped, EOS after each answer.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
# No end-of-turn token at all.
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Not prefix-stable: the last message is written differently.
UNSTABLE = (
    "{% for m in messages %}{% if loop.last %}LAST {% endif %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def _wrap(tokenizer: Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)


def _train(tokenizer: Tokenizer, specials: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


@functools.cache
def byte_level(chat_template: str | None = CHATML) -> Any:
    """GPT-2's kind: no BOS is added (one is declared), pad is EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    wrapped = _wrap(
        _train(tokenizer, specials, pre_tokenizers.ByteLevel.alphabet()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    wrapped.chat_template = chat_template
    return wrapped


@functools.cache
def no_bos() -> Any:
    """Byte-level without any BOS declared (Qwen's kind)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrap(_train(tokenizer, ["<|end|>"], pre_tokenizers.ByteLevel.alphabet()), eos_token="<|end|>")


def _with_bos(tokenizer: Tokenizer, chat_template: str | None) -> Any:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    wrapped = _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    wrapped.chat_template = chat_template
    return wrapped


_PRINTABLE = ["▁", "\n", *[chr(c) for c in range(33, 127)]]


@functools.cache
def metaspace(chat_template: str | None = INST) -> Any:
    """SentencePiece's kind: BOS is added, a space is put before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return _with_bos(_train(tokenizer, ["<unk>", "<s>", "</s>"], _PRINTABLE), chat_template)


@functools.cache
def llama2(chat_template: str | None = INST) -> Any:
    """Llama 2's kind: the space is put by a normaliser and merges run over the whole text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[a-z.])(?=▁)"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trained = _train(tokenizer, ["<unk>", "<s>", "</s>"], _PRINTABLE)
    trained.pre_tokenizer = None  # type: ignore[assignment]
    return _with_bos(trained, chat_template)


def synthetic(record_id: int, prompt: int, answers: list[int]) -> Example:
    """An example of these lengths (answers empty: plain text), its tokens telling it from all others."""
    rng = np.random.default_rng([record_id, prompt, *answers])
    tokens, positions, branch = [np.arange(prompt)], [np.arange(prompt)], [np.zeros(prompt)]
    source, at, sequence = [np.arange(prompt - 1)], [np.arange(1, prompt)], [np.zeros(prompt - 1)]
    if answers:
        source, at, sequence = [], [], []
    offset = prompt
    for slot, length in enumerate(answers):
        tokens.append(np.arange(length))
        positions.append(prompt + np.arange(length))
        branch.append(np.full(length, slot + 1))
        source.append(np.concatenate([[prompt - 1], offset + np.arange(length - 1)]))
        at.append(offset + np.arange(length))
        sequence.append(np.full(length, slot))
        offset += length
    ids = rng.integers(1, 50, sum(map(len, tokens)))
    fields = {
        "tokens": ids,
        "positions": np.concatenate(positions),
        "branch": np.concatenate(branch),
        "source_index": np.concatenate(source),
        "targets": ids[np.concatenate(at)],
        "target_sequence": np.concatenate(sequence),
        "pairs": np.array([(i, j) for j in range(len(answers)) for i in range(j)]).reshape(-1, 2),
    }
    return Example(
        record_id=record_id,
        sequences=max(1, len(answers)),
        **{name: value.astype(np.int32) for name, value in fields.items()},
    )


def show(encoder: Any, example: Any) -> str:
    """Decoded tokens and mask side by side: supervised tokens in brackets, one line a branch, specials as they are."""
    supervised = set()
    for source, target, slot in zip(example.source_index, example.targets, example.target_sequence, strict=True):
        branch = slot + 1 if example.branch.max() > 0 else 0
        (at,) = np.flatnonzero((example.positions == example.positions[source] + 1) & (example.branch == branch))
        assert example.tokens[at] == target
        supervised.add(int(at))
    lines = []
    for branch in range(int(example.branch.max()) + 1):
        words = [
            f"[{word}]" if index in supervised else word
            for index, word in enumerate(encoder.tokenizer.convert_ids_to_tokens(example.tokens.tolist()))
            if example.branch[index] == branch
        ]
        lines.append(" ".join(words).replace("\n", "\\n"))
    return "\n".join(lines)


def contexts(batch: Any) -> dict[tuple[int, int, int], tuple[tuple[tuple[int, int], ...], int]]:
    """(record, slot of its example, number in its sequence) -> ((position, token) seen by the source, target).

    What any causal model computes a target from, by the visibility rule alone: two layouts with equal contexts have
    equal losses and gradients.
    """
    fields = [
        np.asarray(getattr(batch, name))
        for name in ("tokens", "positions", "example", "branch", "source_index", "targets", "target_mask")
    ]
    sequence = np.asarray(batch.target_sequence)
    if fields[0].ndim == 2:
        fields, sequence = [field[:, None] for field in fields], sequence[:, None]
    found: dict[tuple[int, int, int], tuple[tuple[tuple[int, int], ...], int]] = {}
    for row in range(fields[0].shape[0]):
        counts: dict[int, int] = {}
        first_slot: dict[int, int] = {}
        for line in range(fields[0].shape[1]):
            tokens, positions, example, branch, sources, targets, mask = (field[row, line] for field in fields)
            for source, target, used, slot in zip(sources, targets, mask, sequence[row, line], strict=True):
                if not used:
                    assert source == target == slot == 0
                    continue
                assert example[source] > 0
                local = int(slot) - first_slot.setdefault(int(example[source]), int(slot))
                assert branch[source] in (0, local + 1), "a target is predicted from another answer"
                seen = (
                    (example == example[source])
                    & ((branch == 0) | (branch == branch[source]))
                    & (positions <= positions[source])
                )
                record = int(np.asarray(batch.record_ids)[row, example[source] - 1])
                number = counts[int(slot)] = counts.get(int(slot), -1) + 1
                context = tuple(sorted(zip(positions[seen].tolist(), tokens[seen].tolist(), strict=True)))
                key = (record, local, number)
                assert key not in found
                found[key] = (context, int(target))
    return found
