"""Batches in order, read ahead in threads; where one stands is one integer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxalign.data._batch import Batch, PairLayout, collate
from jaxalign.data._drawn import Examples
from jaxalign.data._example import Example, extra_specs
from jaxalign.data._plan import BatchPlan, example_sizes
from jaxalign.errors import InputError

__all__ = ["BatchIterator", "BatchSource", "make_batches", "make_iterator"]


class BatchSource:
    """Random access to batches: element k is batch k, whatever was read before.

    With ``process_count`` processes, each gives its own slice of every batch's rows, ``batch_size / process_count`` of
    them; the slices in process order are the whole. ``beside`` gives every batch its ``pretraining``: batch k of
    another source. Raises ``InputError`` when rows do not divide.
    """

    def __init__(
        self,
        examples: Examples,
        plan: BatchPlan,
        *,
        process_index: int = 0,
        process_count: int = 1,
        pad_token: int = 0,
        beside: BatchSource | None = None,
    ) -> None:
        if plan.batch_size % process_count:
            raise InputError(f"batch_size {plan.batch_size} does not divide among {process_count} processes")
        if not 0 <= process_index < process_count:
            raise InputError(f"process_index {process_index} is not one of {process_count} processes")
        self.plan = plan
        self._examples = examples
        self._extras = extra_specs(examples if isinstance(examples, Sequence) else [examples.draw(0, 0)])
        self._pad_token = pad_token
        self._beside = beside
        share = plan.batch_size // process_count
        self._slice = slice(process_index * share, (process_index + 1) * share)
        self._lock = threading.Lock()  # the plan caches epochs, readers are threads

    def __len__(self) -> int:
        """Number of batches; ``sys.maxsize`` when the plan never ends."""
        return sys.maxsize if self.plan.num_epochs is None else len(self.plan)

    def __getitem__(self, k: int) -> Batch:
        k = int(k)
        with self._lock:
            rows = self.plan.entries(k)[self._slice]
        batch = collate(
            [[self._example(*entry) for entry in row] for row in rows],
            self.plan.shape,
            extras=self._extras,
            pad_token=self._pad_token,
        )
        return batch if self._beside is None else batch.replace(pretraining=self._beside[k])

    def _example(self, index: int, used: int) -> Example:
        examples = self._examples
        return examples[index] if isinstance(examples, Sequence) else examples.draw(index, used)


def make_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    num_epochs: int | None = None,
    pack: bool = False,
    max_length: int | None = None,
    layout: PairLayout = "shared",
    process_index: int = 0,
    process_count: int = 1,
    pad_token: int = 0,
    beside: BatchSource | None = None,
    pieces: int = 1,
) -> BatchSource:
    """The batches of examples: a :class:`BatchPlan` of their sizes and the :class:`BatchSource` that follows it.

    ``batch_size`` is in rows, over all processes; ``max_length`` in tokens of a row; ``pieces`` is what divides the
    length of rows. Raises ``InputError``.
    """
    drawn, mixture = None, None
    if isinstance(examples, Sequence):
        sizes = example_sizes(examples, layout)
    else:
        if layout != "shared":
            raise InputError(f"layout {layout!r}: examples that are drawn are plain sequences, 'shared' is theirs")
        # In order, as for evaluation, every example is used once.
        sizes, mixture = examples.sizes, examples.mixture if shuffle else None
        draw = examples.draw

        def drawn(entries: np.ndarray) -> np.ndarray:
            return example_sizes([draw(int(index), int(used)) for index, used in entries]).table()

    plan = BatchPlan(
        sizes,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        num_epochs=num_epochs,
        pack=pack,
        max_length=max_length,
        layout=layout,
        mixture=mixture,
        drawn=drawn,
        pieces=pieces,
    )
    return BatchSource(
        examples,
        plan,
        process_index=process_index,
        process_count=process_count,
        pad_token=pad_token,
        beside=beside,
    )


class BatchIterator(Iterator[Batch]):
    """Batches from ``position`` on, made ahead by threads. ``position`` is the number of the next batch: save it, and
    set it to go on from there, with the same bits, on any number of processes."""

    def __init__(self, source: BatchSource, start: int = 0, *, threads: int = 2, prefetch: int = 4) -> None:
        import grain

        self.source = source
        self._dataset = grain.MapDataset.source(source).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        )
        self._iterator: Any = None
        self.position = start

    @property
    def position(self) -> int:
        """The number of the next batch."""
        return int(self._iterator.get_state()["next_index"])

    @position.setter
    def position(self, value: int) -> None:
        if not 0 <= value <= len(self.source):
            raise InputError(f"data position {value} is outside the {len(self.source)} batches of this data set")
        self.close()
        self._iterator = iter(self._dataset)
        self._iterator.set_state({"next_index": int(value)})

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        batch: Batch = next(self._iterator)
        return batch

    def close(self) -> None:
        """Stops reading ahead."""
        if self._iterator is not None:
            self._iterator.close()


def make_iterator(source: BatchSource, start: int = 0, *, threads: int = 2, prefetch: int = 4) -> BatchIterator:
    """An iterator over batches ``start``, ``start + 1``, ...; ``threads`` make up to ``prefetch`` batches ahead."""
    return BatchIterator(source, start, threads=threads, prefetch=prefetch)
