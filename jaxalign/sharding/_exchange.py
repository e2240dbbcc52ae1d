"""A few words from every process to every process."""

import jax
import numpy as np


def exchange(text: str) -> list[str]:
    """Return the ``text`` of every process, by its number; in a run of several processes all must call this."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(own))))  # [processes]
    if not lengths.any():
        return [""] * len(lengths)
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = own
    rows = np.asarray(multihost_utils.process_allgather(padded))  # [processes, longest]
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]
