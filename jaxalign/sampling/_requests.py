"""Host side of a sampling call: check the prompts, find their common prefix, choose the sizes of programs."""

import math
from collections.abc import Sequence

import numpy as np

from jaxalign.errors import InputError

# Prefixes shorter than this are not worth a program of their own.
SHORTEST_PREFIX = 8


def check_prompts(
    prompts: Sequence[Sequence[int]], vocab_size: int, max_positions: int, limits: np.ndarray
) -> list[np.ndarray]:
    """The prompts as int32 arrays ``[n_i]``.

    Args:
        prompts: ragged lists of token ids.
        vocab_size: V.
        max_positions: tokens that a prompt and its response may have together.
        limits: int ``[P]``, tokens each response may have.

    Raises:
        InputError: naming the prompt's index.
    """
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
        room = max_positions - int(limits[index])
        if len(ids) > room:
            raise InputError(
                f"generate: prompts[{index}] has {len(ids)} tokens; with max_new_tokens the model's max_positions "
                f"leaves room for {room}"
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


def row_count(responses: int, batch_size: int, shards: int = 1) -> int:
    """R, the rows decoded together: ``batch_size``, or the power of two that holds all responses where they are few.

    Rounded up to a multiple of ``shards``, the parts they are split into.
    """
    rows = min(batch_size, 2 ** math.ceil(math.log2(responses)))
    return rows + -rows % shards
