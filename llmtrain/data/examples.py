"""Rows for fine-tuning: one example each, in an order that puts examples of similar length together; or as
many as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from llmtrain.data.batch import Batch
from llmtrain.data.packed import pack
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.utils.seed import Permutation

MakeBatch = Callable[[Sequence[PackedRow], int, int], Batch]
"""Rows, their length with padding, and the padding token -> batch; see `Task.batch`."""

WINDOW = 50
"""Batches' worth of random examples that are sorted by length together."""


class ExampleRows:
    """An endless stream of examples for batches of a fixed number of them.

    In training each epoch draws its own order; then every WINDOW batches' worth of examples are sorted by
    length and cut into batches, and the batches are put into random order. So an example meets random
    others of about its own length, and little of a batch is padding. For evaluation the order is by length.

    An epoch need not end with a batch: the borders of batches run on through the epochs, and what is left
    over before the first border and behind the last one is not sorted.

    Args:
        samples: all examples, encoded.
        make_batch: `Task.batch`.
        sequence_length: longest sample.
        batch_size: examples of the global batch.
        pad_id: token that fills rows.
        seed: of the order.
        shuffle: False for evaluation.
        multiple: rows have a multiple of so many places, for processes that share them out.
        one_length: all rows are `sequence_length` long, for pipelines: their messages have one size.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        make_batch: MakeBatch,
        *,
        sequence_length: int,
        batch_size: int,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
        multiple: int = 1,
        one_length: bool = False,
    ) -> None:
        assert samples, "no samples"
        self.samples = samples
        self.sequence_length = sequence_length
        self.rows_per_epoch = len(samples)
        self.lengths = np.array([len(sample.ids) for sample in samples])
        self._make_batch = make_batch
        self._batch_size = batch_size
        self._pad_id = pad_id
        self._seed = seed
        self._shuffle = shuffle
        self._multiple = multiple
        self._one_length = one_length
        self.order = lru_cache(maxsize=2)(self._order)

    @property
    def mean_length(self) -> float:
        """Real tokens in a row."""
        return float(self.lengths.mean())

    def read(self, global_row: int) -> PackedRow:
        """A row of the endless stream."""
        epoch, place = divmod(global_row, self.rows_per_epoch)
        return PackedRow([self.samples[self.order(epoch)[place]]], epoch)

    def collate(self, rows: Sequence[PackedRow]) -> Batch:
        """A batch as long as its longest row, rounded up."""
        return self._make_batch(rows, self._padded(max(row.length for row in rows)), self._pad_id)

    def filler(self) -> PackedRow:
        """A row without an example."""
        return PackedRow()

    def limit(self, row: PackedRow, tokens: int) -> PackedRow:
        """Examples are taken whole."""
        return row

    def _padded(self, length: int) -> int:
        """Length rounded up a little, by 3 % at most from 32 on: fewer lengths for the same speed."""
        if self._one_length:
            return self.sequence_length
        steps = ((32, 1), (64, 2), (128, 4), (256, 8), (1 << 62, 16))
        step = math.lcm(next(step for limit, step in steps if length <= limit), self._multiple)
        return min(max(1, -(-length // step)) * step, max(self.sequence_length, length))

    def _order(self, epoch: int) -> np.ndarray:
        """Numbers of the samples in the order of an epoch, (samples,) int64."""
        num, size = self.rows_per_epoch, self._batch_size
        if not self._shuffle:
            return np.argsort(-self.lengths, kind="stable")
        order = Permutation(num, self._seed, "examples", epoch)(np.arange(num))
        start = min(-epoch * num % size, num)  # rows that still belong to the last batch of the epoch before
        stop = start + (num - start) // size * size
        for begin in range(start, stop, WINDOW * size):
            window = order[begin : min(begin + WINDOW * size, stop)]
            window[:] = window[np.argsort(-self.lengths[window], kind="stable")]
        batches = order[start:stop].reshape(-1, size)
        if len(batches):
            places = Permutation(len(batches), self._seed, "batches", epoch)(np.arange(len(batches)))
            order[start:stop] = batches[places].ravel()
        return order


class PackedExamples:
    """An endless stream of rows with as many whole examples as there is room for.

    Each epoch packs them anew: which examples of one length go where, and the order of the rows, depend on
    seed and epoch alone. How many rows there are depends on the lengths only, and is the same in each epoch.

    Args:
        samples: all examples, encoded.
        make_batch: `Task.batch`; keeps attention inside each sample.
        sequence_length: T, length of all rows.
        pad_id: token that fills rows.
        seed: of the order.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        make_batch: MakeBatch,
        *,
        sequence_length: int,
        pad_id: int,
        seed: int,
    ) -> None:
        assert samples, "no samples"
        self.samples = samples
        self.sequence_length = sequence_length
        self.lengths = np.array([len(sample.ids) for sample in samples])
        self._make_batch = make_batch
        self._pad_id = pad_id
        self._seed = seed
        self._plan = lru_cache(maxsize=2)(self._make_plan)  # a batch may cross from one epoch to the next
        self.rows_per_epoch = len(self._plan(0)[1]) - 1

    @property
    def mean_length(self) -> float:
        """Real tokens in a row."""
        return float(self.lengths.sum() / self.rows_per_epoch)

    def read(self, global_row: int) -> PackedRow:
        """A row of the endless stream."""
        epoch, place = divmod(global_row, self.rows_per_epoch)
        chosen, starts = self._plan(epoch)
        row = Permutation(self.rows_per_epoch, self._seed, "rows", epoch).at(place)
        return PackedRow([self.samples[i] for i in chosen[starts[row] : starts[row + 1]]], epoch)

    def collate(self, rows: Sequence[PackedRow]) -> Batch:
        """A batch of rows of one length."""
        return self._make_batch(rows, self.sequence_length, self._pad_id)

    def filler(self) -> PackedRow:
        """A row without an example."""
        return PackedRow()

    def limit(self, row: PackedRow, tokens: int) -> PackedRow:
        """Examples are taken whole."""
        return row

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the samples row by row, (samples,), and where each row begins in them, (rows + 1,)."""
        num = len(self.samples)
        order = Permutation(num, self._seed, "packing", epoch)(np.arange(num))
        row_of = pack(self.lengths, order, self.sequence_length, limit=self.sequence_length)
        chosen = np.argsort(row_of, kind="stable")
        return chosen, np.searchsorted(row_of[chosen], np.arange(row_of.max() + 2))
