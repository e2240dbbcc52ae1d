"""Chains as text: what is supervised in brackets, EOS as it is written."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np

from jaxalign.data import ChainFormat, Encoder, build_chains
from tests.data import toy

GPT2 = Encoder(toy.byte_level())
LLAMA = Encoder(toy.metaspace())
LLAMA2 = Encoder(toy.llama2())
BARE = Encoder(toy.no_bos())
ENCODERS = {"gpt2": GPT2, "llama": LLAMA, "llama2": LLAMA2, "bare": BARE}

# Six lines by hand in the format of the Anthropic-HH files: they part at the last turn, and at a person's turn before.
HH = {
    "chosen": "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant: A good film.",
    "rejected": "\n\nHuman: hello\n\nAssistant: yes\n\nHuman: what is good?\n\nAssistant: A bad story.",
}
EARLY = {**HH, "rejected": HH["rejected"].replace("what is good?", "why?")}
CHAT = {
    "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": " no "}],
}


def supervised(example: Any) -> np.ndarray:
    """Which tokens are targets; each is predicted from the one before it, in one plain sequence."""
    assert not example.branch.any()
    assert example.positions.tolist() == list(range(len(example.tokens)))
    assert example.sequences == 1
    assert not example.target_sequence.any()
    assert example.tokens[example.source_index + 1].tolist() == example.targets.tolist()
    found = np.zeros(len(example.tokens), bool)
    found[example.source_index + 1] = True
    assert found.sum() == len(example.targets)
    return found


def text(encoder: Encoder, example: Any) -> str:
    """Decoded tokens without BOS; every run of targets in brackets."""
    ids, mask = example.tokens.tolist(), supervised(example)
    if ids[0] == encoder.bos:
        ids, mask = ids[1:], mask[1:]
    bounds = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(ids)]
    parts = []
    for start, end in itertools.pairwise(bounds):
        run = ids[start:end]
        part = encoder.decode_following(run) if start else encoder.decode(run)
        parts.append(f"[{part}]" if mask[start] else part)
    return "".join(parts)


def drawn(records: Any, encoder: Encoder = GPT2, *, uses: int = 1, **options: Any) -> list[str]:
    """The texts of the first draws of every record; fields of ``ChainFormat`` and arguments of ``build_chains``."""
    form = {name: options.pop(name) for name in list(options) if name in ChainFormat.__dataclass_fields__}
    if isinstance(form.get("template_names"), str):
        form["template_names"] = (form["template_names"],)
    if isinstance(form.get("structures"), str):
        form["structures"] = (form["structures"],)
    templates = options.pop("own_templates", None)
    chains, _ = build_chains(records, encoder, ChainFormat(**form), templates=templates, **options)
    return [text(encoder, chains.draw(index, used)) for index in range(len(chains)) for used in range(uses)]


def filled(words: str, eos: str, **outputs: str) -> str:
    """A template's text with its outputs: in brackets, with the space before them and their EOS."""
    return re.sub(r"(\s*)\{(\w+)\}", lambda found: f"[{found[1] or ' '}{outputs[found[2]]}{eos}]", words)
