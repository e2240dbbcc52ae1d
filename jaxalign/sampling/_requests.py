"""Host side of a sampling call: check the prompts, find their common prefix, cut the work into equal chunks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign.errors import InputError

# Prefixes shorter than this are not worth a program of their own.
SHORTEST_PREFIX = 8


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int, longest: int) -> list[np.ndarray]:
    """The prompts as int32 arrays ``[n_i]``.

    Args:
        prompts: ragged lists of token ids.
        vocab_size: V.
        longest: tokens a prompt may have.

    Raises:
        InputError: naming the prompt's index.
    """
    if len(prompts) == 0:
        raise InputError("generate: prompts is empty")
    checked = []
    for index, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.size == 0:
            raise InputError(f"generate: prompts[{index}] is empty; begin it with a BOS or EOS token")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise InputError(f"generate: prompts[{index}] is not a flat list of integer token ids")
        outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if outside.size:
            at = int(outside[0])
            raise InputError(
                f"generate: prompts[{index}][{at}] = {int(ids[at])} is outside the vocabulary of {vocab_size} tokens"
            )
        if len(ids) > longest:
            raise InputError(
                f"generate: prompts[{index}] has {len(ids)} tokens; with max_new_tokens the model's max_positions "
                f"leaves room for {longest}"
            )
        checked.append(ids.astype(np.int32))
    return checked


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """Length of the longest prefix shared by all prompts that leaves each at least one token of its own."""
    longest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0][:longest]
    for prompt in prompts[1:]:
        different = np.flatnonzero(prompt[: len(first)] != first)
        if different.size:
            first = first[: different[0]]
    return len(first)


def bucket(length: int) -> int:
    """The smallest of 8, 16, 24, 32, 48, 64, 96, 128, 192 ... that holds ``length``: few programs, little padding."""
    power = 8
    while power < length:
        power *= 2
    three_quarters = power // 4 * 3
    return three_quarters if power > 16 and three_quarters >= length else power


def prefix_bucket(length: int) -> int:
    """The largest multiple of 8 (of an eighth of its magnitude when long) within ``length``; 0 if too short to pay.

    Rounded down, not up: what is cut off is prefilled with each prompt, and no column of the cache is wasted.
    """
    if length < SHORTEST_PREFIX:
        return 0
    step = max(8, 2 ** int(math.log2(length)) // 8)
    return length // step * step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunk:
    """One call of the jitted program: U prompts, G samples of each, R = U G rows; host arrays, traced inside."""

    tokens: Any
    """int32 ``[U, T]``, right-padded with 0."""
    lengths: Any
    """int32 ``[U]``, at least 1."""
    prompt_index: Any
    """int32 ``[R]``."""
    sample_index: Any
    """int32 ``[R]``."""
    live: Any
    """bool ``[R]``: False for rows that only fill the chunk up."""


def group_size(samples_per_prompt: int, batch_size: int) -> int:
    """Samples that share one prefill: all of a prompt's, or equal parts of them where they outnumber the batch."""
    parts = math.ceil(samples_per_prompt / batch_size)
    return math.ceil(samples_per_prompt / parts)


def chunks(prompts: Sequence[np.ndarray], samples_per_prompt: int, batch_size: int) -> Iterator[Chunk]:
    """Cut ``prompts`` (shared prefix removed) into chunks of at most ``batch_size`` rows, all of the same R.

    Prompts are taken in order of length, so that a chunk's padding is small; the sample of a row does not depend on the
    chunk it is in. Several chunks: each has the full size. One chunk: a power of two of prompts.
    """
    group = group_size(samples_per_prompt, batch_size)
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    units = [(int(index), first) for index in order for first in range(0, samples_per_prompt, group)]
    most = max(1, batch_size // group)
    size = most if len(units) > most else min(most, 2 ** math.ceil(math.log2(len(units))))
    for start in range(0, len(units), size):
        part = units[start : start + size]
        width = bucket(max(len(prompts[index]) for index, _ in part))
        tokens, lengths = np.zeros((size, width), np.int32), np.ones(size, np.int32)
        prompt_index, sample_index = np.zeros((size, group), np.int32), np.zeros((size, group), np.int32)
        live = np.zeros((size, group), bool)
        for row, (index, first) in enumerate(part):
            lengths[row] = len(prompts[index])
            tokens[row, : lengths[row]] = prompts[index]
            prompt_index[row] = index
            sample_index[row] = first + np.arange(group)
            live[row] = sample_index[row] < samples_per_prompt
        yield Chunk(tokens, lengths, prompt_index.ravel(), sample_index.ravel(), live.ravel())
