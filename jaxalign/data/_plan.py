"""Which example stands in which row of which batch: a pure function of (seed, batch number), from lengths only."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxalign.data._batch import BatchShape, PairLayout
from jaxalign.data._example import Example
from jaxalign.errors import InputError

__all__ = ["BatchPlan", "Entry", "Mixture", "Sizes", "example_sizes"]

# Examples are packed among this many neighbours in the epoch's order: enough to fill rows, cheap, and local.
_WINDOW = 512
_MIXTURE = 0x313  # beside (seed, source, round): another stream than the epochs'
_MULTIPLE = 8  # token and target axes are padded to this
Row = tuple[int, ...]
Entry = tuple[int, int]
"""(index of an example, how often it was used before): what is drawn anew each time is drawn from both."""


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


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Examples of several sources, mixed by weights instead of by the sources' sizes."""

    source: np.ndarray
    """``[N]`` int, the source of each example, 0 .. G - 1."""
    weights: tuple[float, ...]
    """G numbers above 0; a source's share of every epoch is its weight over their sum."""

    def __post_init__(self) -> None:
        if len(self.weights) != int(self.source.max()) + 1:
            raise InputError(f"{len(self.weights)} weights for {int(self.source.max()) + 1} sources")
        if not all(np.isfinite(weight) and weight > 0 for weight in self.weights):
            raise InputError(f"weights of a mixture must be finite and above 0, are {list(self.weights)}")

    def counts(self) -> np.ndarray:
        """``[G]``: how many examples of each source an epoch holds; their sum is about N (largest remainders)."""
        exact = np.array(self.weights) / sum(self.weights) * len(self.source)
        counts = np.floor(exact).astype(np.int64)
        missing = len(self.source) - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
        return np.maximum(counts, 1)


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

    With a ``mixture`` epoch e holds each source's share instead: every source is an unending stream of permutations of
    its own by (seed, source, round), of which an epoch takes the next ones; so a source's examples are all used before
    one is used again, whatever its weight.

    ``pack=True`` puts several examples into one row of at most ``max_length`` tokens by first-fit-decreasing among
    neighbours in the epoch's order. All shapes are fixed for the run: T and S are the longest row's, rounded up to a
    multiple of 8 (T at most ``max_length``), and the packing of later epochs stays within those of the first. Both are
    then padded to a multiple of ``pieces``, into which a mesh may split rows; what lies in which row is the same.

    Examples that are drawn anew each time they are used have ``sizes`` that are the largest they can be, and
    ``drawn(entries [n, 2]) -> [n, 5]``, the sizes that they have, by which they are packed.

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
        mixture: Mixture | None = None,
        drawn: Callable[[np.ndarray], np.ndarray] | None = None,
        pieces: int = 1,
    ) -> None:
        if mixture is not None and not shuffle:
            raise InputError("a mixture by weights is shuffled; examples in order are of their own number")
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
        self._mixture, self._drawn = mixture, drawn
        self._shares = None if mixture is None else mixture.counts()
        self._count = len(self._table) if self._shares is None else int(self._shares.sum())
        cap = _round_up(longest) if max_length is None else max_length
        self._capacity = np.array([cap, *(self._table[:, 1:].max(axis=0) * self._count)])
        self._cache: dict[int, list[tuple[Entry, ...]]] = {}
        # Epoch 0 decides the shape; packing it again under that shape gives the same rows, later epochs obey it.
        used = self._table.max(axis=0)
        if pack:
            packed = np.array([self._sizes(np.array(row)).sum(axis=0) for row in self.entries_of(0)]).max(axis=0)
            used = np.maximum(used, packed)
        self._capacity = np.array([min(_round_up(used[0]), cap), _round_up(used[1]), *used[2:]])
        self.shape = BatchShape(
            tokens=_round_up(self._capacity[0], pieces),
            targets=_round_up(self._capacity[1], pieces),
            pairs=int(self._capacity[2]),
            sequences=int(self._capacity[3]),
            examples=int(self._capacity[4]),
            answers=1 if layout == "shared" else int(sizes.sequences.max()),
            branched=layout == "shared" and int(sizes.sequences.max()) > 1,
            layout=layout,
        )
        """The fixed shape of all rows."""
        # Rows before epoch e, as far as it is known; without packing every epoch has as many rows as examples.
        self._starts = [0, len(self.entries_of(0))]
        self._length = None if num_epochs is None else -(-self._start(num_epochs) // batch_size)

    def __len__(self) -> int:
        """Number of batches; only with ``num_epochs``."""
        if self._length is None:
            raise TypeError("a plan without num_epochs never ends")
        return self._length

    def epoch(self, epoch: int) -> list[Row]:
        """The rows of an epoch, each a tuple of indices into the examples."""
        return [tuple(index for index, _ in row) for row in self.entries_of(epoch)]

    def entries_of(self, epoch: int) -> list[tuple[Entry, ...]]:
        """The rows of an epoch, each with how often its examples were used before."""
        if epoch not in self._cache:
            while len(self._cache) > 1:  # batches are read in order: this epoch and the one before are enough
                self._cache.pop(next(iter(self._cache)))
            self._cache[epoch] = self._plan(epoch)
        return self._cache[epoch]

    def _items(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """``[n, 2]``: the entries of an epoch in its order."""
        if self._mixture is None:
            order = random.permutation(self._count) if self._shuffle else np.arange(self._count)
            return np.stack([order, np.full(self._count, epoch)], axis=1)
        assert self._shares is not None
        taken = []
        for number, share in enumerate(self._shares):
            own = np.flatnonzero(self._mixture.source == number)
            rounds, places = np.divmod(np.arange(epoch * share, (epoch + 1) * share), len(own))
            for used in np.unique(rounds):
                order = own[np.random.default_rng([self.seed, number, int(used), _MIXTURE]).permutation(len(own))]
                taken += [(int(order[place]), int(used)) for place in places[rounds == used]]
        return np.array(taken)[random.permutation(len(taken))]

    def _sizes(self, items: np.ndarray) -> np.ndarray:
        return self._table[items[:, 0]] if self._drawn is None else self._drawn(items)

    def _plan(self, epoch: int) -> list[tuple[Entry, ...]]:
        random = np.random.default_rng([self.seed, epoch])
        items = self._items(epoch, random)
        entries = [(int(index), int(used)) for index, used in items]
        if not self._pack:
            return [(entry,) for entry in entries]
        table = self._sizes(items)
        rows: list[Row] = []
        for start in range(0, self._count, _WINDOW):
            window = np.arange(start, min(start + _WINDOW, self._count))
            rows += [tuple(sorted(row)) for row in _first_fit_decreasing(window, table, self._capacity)]
        if self._shuffle:  # packing puts long examples first in a window: undo that
            rows = [rows[index] for index in random.permutation(len(rows))]
        else:
            rows.sort(key=lambda row: row[0])
        return [tuple(entries[place] for place in row) for row in rows]

    def _start(self, epoch: int) -> int:
        """Number of rows before an epoch."""
        if not self._pack:
            return epoch * self._count
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.entries_of(len(self._starts) - 1)))
        return self._starts[epoch]

    def _epoch_of(self, row: int) -> int:
        """The epoch a row of the stream is in."""
        if not self._pack:
            return row // self._count
        while self._starts[-1] <= row:
            self._start(len(self._starts))
        return bisect.bisect_right(self._starts, row) - 1

    def rows(self, k: int) -> list[Row]:
        """The ``batch_size`` rows of batch k, as indices; see ``entries``."""
        return [tuple(index for index, _ in row) for row in self.entries(k)]

    def entries(self, k: int) -> list[tuple[Entry, ...]]:
        """The ``batch_size`` rows of batch k; past the last epoch they are empty. ``IndexError`` past the end."""
        if k < 0 or (self._length is not None and k >= self._length):
            raise IndexError(f"batch {k} of {self._length}")
        rows: list[tuple[Entry, ...]] = []
        position = k * self.batch_size
        while len(rows) < self.batch_size:
            epoch = self._epoch_of(position)
            if self.num_epochs is not None and epoch >= self.num_epochs:
                return rows + [()] * (self.batch_size - len(rows))
            taken = self.entries_of(epoch)[position - self._start(epoch) :][: self.batch_size - len(rows)]
            rows.extend(taken)
            position += len(taken)
        return rows


def _round_up(length: int, multiple: int = _MULTIPLE) -> int:
    return -(-int(length) // multiple) * multiple
