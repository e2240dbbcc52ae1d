"""Which example stands in which row of which batch: a pure function of (seed, batch number), from lengths only."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.data._batch import BatchShape, PairLayout
from jaxalign.data._example import Example
from jaxalign.errors import InputError

__all__ = ["BatchPlan", "Sizes", "example_sizes"]

# Examples are packed among this many neighbours in the epoch's order: enough to fill rows, cheap, and local.
_WINDOW = 512
_MULTIPLE = 8  # token and target axes are padded to this
Row = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Sizes:
    """What each example takes of a row, ``[N]`` int64 each; all a plan needs to know of the data."""

    tokens: np.ndarray
    """Tokens of the row (in "two_rows" of its longest answer row)."""
    targets: np.ndarray
    """Supervised targets (in "two_rows" of the row with most)."""
    pairs: np.ndarray
    """Preference pairs."""
    sequences: np.ndarray
    """Sequence slots."""
    record_ids: np.ndarray
    """For messages."""

    def table(self) -> np.ndarray:
        """``[N, 5]``: tokens, targets, pairs, sequences, examples (1)."""
        return np.stack([self.tokens, self.targets, self.pairs, self.sequences, np.ones_like(self.tokens)], axis=1)


def example_sizes(examples: Sequence[Example], layout: PairLayout = "shared") -> Sizes:
    """The sizes of examples in a layout."""

    def tokens(example: Example) -> int:
        if layout == "shared":
            return example.count("token")
        by_branch = np.bincount(example.branch, minlength=2)
        return int(by_branch[0] + by_branch[1:].max())

    def targets(example: Example) -> int:
        if layout == "shared":
            return example.count("target")
        return int(np.bincount(example.target_sequence, minlength=1).max())

    def column(values: Sequence[int]) -> np.ndarray:
        return np.array(values, np.int64)

    return Sizes(
        tokens=column([tokens(example) for example in examples]),
        targets=column([targets(example) for example in examples]),
        pairs=column([example.count("pair") for example in examples]),
        sequences=column([example.sequences for example in examples]),
        record_ids=column([example.record_id for example in examples]),
    )


def _first_fit_decreasing(order: np.ndarray, table: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
    """Rows of the examples in ``order``: the longest first, each into the first row with room in every column."""
    rows: list[list[int]] = []
    free = np.empty((len(order), table.shape[1]), np.int64)
    for index in order[np.argsort(-table[order, 0], kind="stable")]:
        fits = (free[: len(rows)] >= table[index]).all(axis=1)
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            free[row] = capacity
            rows.append([])
        free[row] -= table[index]
        rows[row].append(int(index))
    return rows


class BatchPlan:
    """The rows of every batch. Batch k is a pure function of (seed, k); nothing is lost or repeated in an epoch.

    Epoch e is a permutation by (seed, e), packed (or not) into rows; the rows of successive epochs form one stream and
    batch k takes its rows ``[k B, (k+1) B)``, ``B = batch_size``. With ``num_epochs`` the last batch is filled up with
    empty rows; without, the stream never ends. ``shuffle=False`` keeps the examples' order (evaluation).

    ``pack=True`` puts several examples into one row of at most ``max_length`` tokens by first-fit-decreasing among
    neighbours in the epoch's order. All shapes are fixed for the run: T and S are the longest row's, rounded up to a
    multiple of 8 (T at most ``max_length``), and the packing of later epochs stays within those of the first.

    Raises ``InputError`` for no examples, an example longer than ``max_length`` (naming its record), or bad numbers.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        num_epochs: int | None = None,
        pack: bool = False,
        max_length: int | None = None,
        layout: PairLayout = "shared",
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("num_epochs", num_epochs, 1)):
            if value is not None and value < least:
                raise InputError(f"{name} is {value}, must be at least {least}")
        if not len(sizes.tokens):
            raise InputError("no examples to make batches of")
        longest = int(sizes.tokens.max())
        if max_length is not None and longest > max_length:
            record = int(sizes.record_ids[sizes.tokens.argmax()])
            raise InputError(f"record {record}: a row of {longest} tokens, more than the rows' max_length {max_length}")
        self.batch_size, self.seed, self.num_epochs = batch_size, seed, num_epochs
        self._shuffle, self._pack = shuffle, pack
        self._table = sizes.table()
        cap = _round_up(longest) if max_length is None else max_length
        self._capacity = np.array([cap, *self._table[:, 1:].sum(axis=0)])
        self._cache: dict[int, list[Row]] = {}
        # Epoch 0 decides the shape; packing it again under that shape gives the same rows, later epochs obey it.
        used = self._table.max(axis=0)
        if pack:
            used = np.array([self._table[list(row)].sum(axis=0) for row in self.epoch(0)]).max(axis=0)
        self._capacity = np.array([min(_round_up(used[0]), cap), _round_up(used[1]), *used[2:]])
        self.shape = BatchShape(
            tokens=int(self._capacity[0]),
            targets=int(self._capacity[1]),
            pairs=int(self._capacity[2]),
            sequences=int(self._capacity[3]),
            examples=int(self._capacity[4]),
            answers=1 if layout == "shared" else int(sizes.sequences.max()),
            branched=layout == "shared" and int(sizes.sequences.max()) > 1,
            layout=layout,
        )
        """The fixed shape of all rows."""
        # Rows before epoch e, as far as it is known; without packing every epoch has as many rows as examples.
        self._starts = [0, len(self.epoch(0))]
        self._length = None if num_epochs is None else -(-self._start(num_epochs) // batch_size)

    def __len__(self) -> int:
        """Number of batches; only with ``num_epochs``."""
        if self._length is None:
            raise TypeError("a plan without num_epochs never ends")
        return self._length

    def epoch(self, epoch: int) -> list[Row]:
        """The rows of an epoch, each a tuple of indices into the examples."""
        if epoch not in self._cache:
            while len(self._cache) > 1:  # batches are read in order: this epoch and the one before are enough
                self._cache.pop(next(iter(self._cache)))
            self._cache[epoch] = self._plan(epoch)
        return self._cache[epoch]

    def _plan(self, epoch: int) -> list[Row]:
        count = len(self._table)
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(count) if self._shuffle else np.arange(count)
        if not self._pack:
            return [(int(index),) for index in order]
        rank = np.empty(count, np.int64)
        rank[order] = np.arange(count)
        rows: list[Row] = []
        for start in range(0, count, _WINDOW):
            for row in _first_fit_decreasing(order[start : start + _WINDOW], self._table, self._capacity):
                rows.append(tuple(sorted(row, key=lambda index: rank[index])))
        if self._shuffle:  # packing puts long examples first in a window: undo that
            return [rows[index] for index in random.permutation(len(rows))]
        return sorted(rows, key=lambda row: rank[row[0]])

    def _start(self, epoch: int) -> int:
        """Number of rows before an epoch."""
        if not self._pack:
            return epoch * len(self._table)
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
        return self._starts[epoch]

    def _epoch_of(self, row: int) -> int:
        """The epoch a row of the stream is in."""
        if not self._pack:
            return row // len(self._table)
        while self._starts[-1] <= row:
            self._start(len(self._starts))
        return bisect.bisect_right(self._starts, row) - 1

    def rows(self, k: int) -> list[Row]:
        """The ``batch_size`` rows of batch k; past the last epoch they are empty. ``IndexError`` past the end."""
        if k < 0 or (self._length is not None and k >= self._length):
            raise IndexError(f"batch {k} of {self._length}")
        rows: list[Row] = []
        position = k * self.batch_size
        while len(rows) < self.batch_size:
            epoch = self._epoch_of(position)
            if self.num_epochs is not None and epoch >= self.num_epochs:
                return rows + [()] * (self.batch_size - len(rows))
            taken = self.epoch(epoch)[position - self._start(epoch) :][: self.batch_size - len(rows)]
            rows.extend(taken)
            position += len(taken)
        return rows


def _round_up(length: int) -> int:
    return -(-int(length) // _MULTIPLE) * _MULTIPLE
