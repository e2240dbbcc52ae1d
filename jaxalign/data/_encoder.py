"""Text to token ids, segment by segment: the one owner of special tokens and of the space some tokenizers prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jaxalign.errors import InputError

__all__ = ["Encoder", "TokenizerLike", "as_encoder"]

# Short texts that stand before a segment while it is tokenised, so that it is not taken for the start of a text.
_ANCHORS = ("\n", "=", ".", ")", "a", "0", "the")
_PROBES = ("a", "the", "to", "e", "0", "1")
_LONG_NOTICE = "sequence-length-is-longer-than-the-specified-maximum"
"""transformers' name of its notice of "indexing errors", which it keeps on a tokenizer once it has been given."""


class TokenizerLike(Protocol):
    """What is needed of a tokenizer; those of transformers have it. Chat records also need ``apply_chat_template``."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text."""
        ...


class Encoder:
    """A tokenizer with its special tokens settled once.

    - BOS is put at the start of a sequence when the tokenizer itself puts one (``add_bos=None``), once: not where the
      text (a rendered chat template) already begins with it.
    - EOS ends a finished completion, exactly once. A chat template's own end-of-turn token takes its place.
    - A later segment is tokenised as a continuation, never as the start of a text: tokenizers of the SentencePiece kind
      otherwise prefix a space, and ``decode(ids)`` would not be the text.

    Raises ``InputError`` when the tokenizer has no EOS (or no BOS where one is asked for).
    """

    def __init__(self, tokenizer: TokenizerLike, *, add_bos: bool | None = None, eos: int | None = None) -> None:
        self.tokenizer: Any = tokenizer
        # No indexing error comes: what is longer than a model is cut or refused by its row, where examples are built.
        getattr(tokenizer, "deprecation_warnings", {})[_LONG_NOTICE] = True
        declared = tokenizer.bos_token_id
        if add_bos is None:
            probe, plain = tokenizer.encode("a", add_special_tokens=True), self.raw("a")
            add_bos = declared is not None and probe[:1] == [declared] and plain[:1] != [declared]
        elif add_bos and declared is None:
            raise InputError("tokenizer: a BOS is asked for, but it has none (bos_token)")
        self.bos: int | None = declared if add_bos else None
        """The id every sequence begins with, or None."""
        self.start: int | None = declared
        """The id an *empty* prompt consists of: the declared BOS, whether or not it is usually added, or None."""
        chosen = tokenizer.eos_token_id if eos is None else eos
        if chosen is None:
            raise InputError("tokenizer: it has no end-of-sequence token (eos_token); name one")
        self.eos: int = int(chosen)
        """The id that ends a finished completion."""
        self.prefixes_space = self._prefixes_space()
        """Whether the tokenizer puts a space before every text it is given."""
        self._anchors: list[tuple[str, list[int]]] = []
        if self.prefixes_space:
            self._anchors = [
                (anchor, self.raw(anchor)) for anchor in _ANCHORS if self.decode(self.raw(anchor)).lstrip(" ") == anchor
            ]
        self.special_tokens: tuple[str, ...] = self._special_tokens()
        """Texts of the special tokens, longest first."""

    def _prefixes_space(self) -> bool:
        for probe in _PROBES:
            ids = self.raw(probe)
            if self.decode(ids).strip() == probe:
                return self.decode(ids + ids) != probe + probe
        return False

    def _special_tokens(self) -> tuple[str, ...]:
        tokens = {str(token) for token in getattr(self.tokenizer, "all_special_tokens", ())}
        added = getattr(self.tokenizer, "added_tokens_decoder", None) or {}
        tokens |= {str(token) for token in added.values() if getattr(token, "special", False)}
        return tuple(sorted((token for token in tokens if token), key=lambda token: (-len(token), token)))

    def raw(self, text: str) -> list[int]:
        """The tokenizer's ids of a text, without added special tokens (those written in the text are recognised)."""
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids)))

    def decode_following(self, ids: Sequence[int]) -> str:
        """The text of ids that continue another text: tokenizers that prefix a space strip one from a beginning."""
        if not self.prefixes_space:
            return self.decode(ids)
        head = self.raw("a")
        return self.decode([*head, *ids])[len(self.decode(head)) :]

    def first(self, text: str) -> list[int]:
        """Ids of a text that begins a sequence, BOS first where one is used. An empty text is the start token alone."""
        ids = self.raw(text)
        if not ids:
            return [] if self.start is None else [self.start]
        return ids if self.bos is None or ids[0] == self.bos else [self.bos, *ids]

    def following(self, text: str) -> list[int]:
        """Ids of a text that continues another, tokenised on its own: nothing is put before it."""
        if not text or not self.prefixes_space:
            return self.raw(text)
        for anchor, head in self._anchors:
            ids = self.raw(anchor + text)
            if ids[: len(head)] == head and len(ids) > len(head):
                return ids[len(head) :]
        raise InputError(f"tokenizer: it prefixes a space and cannot continue a text with {text[:20]!r}")

    def close(self, ids: Sequence[int], *, finished: bool, eos: int | None = None) -> list[int]:
        """The ids of a completion with exactly one EOS at its end if finished, and none if not."""
        eos = self.eos if eos is None else eos
        end = len(ids)
        while end > 0 and ids[end - 1] == eos:
            end -= 1
        return [*ids[:end], eos] if finished else list(ids[:end])


def as_encoder(tokenizer: TokenizerLike | Encoder) -> Encoder:
    """The encoder itself, or one with the defaults around a tokenizer."""
    return tokenizer if isinstance(tokenizer, Encoder) else Encoder(tokenizer)
