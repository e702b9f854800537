"""Rows of several samples each: the packing, and the stream of rows that is planned anew in each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.mask import Masker
from llmtrain.data.plans import PlanFiles
from llmtrain.data.samples import Frame, PackedRow, Sample, pack_batch
from llmtrain.data.store import View
from llmtrain.utils.errors import DataError
from llmtrain.utils.seed import Permutation

Kind = tuple[tuple[int, ...], int]
"""Lengths of the samples in a row, and how many rows are like that."""


def max_samples(sequence_length: int) -> int:
    """S, most samples in a row; enough for rows of short sentences."""
    return max(8, sequence_length // 16)


def pack(lengths: np.ndarray, order: np.ndarray, capacity: int, limit: int) -> np.ndarray:
    """Put samples into as few rows as a simple rule can.

    Best fit, longest first, on the histogram of lengths instead of the samples, so that the time hardly
    depends on their number (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination").

    Args:
        lengths: (N,) tokens of each sample, 1 to `capacity`.
        order: permutation of the samples; those of equal length are taken in this order.
        capacity: T, tokens in a row.
        limit: S, samples in a row at most.

    Returns:
        (N,) int64 number of each sample's row; the rows are numbered by their first sample.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    by_length = order[np.argsort(lengths[order].astype(np.min_scalar_type(capacity)), kind="stable")]
    taken = (np.cumsum(counts) - counts).tolist()
    row_of = np.empty(len(lengths), np.int64)
    num_rows = 0
    for composition, count in _kinds(counts.tolist(), capacity, limit):
        rows = np.arange(num_rows, num_rows + count)
        for length in composition:
            row_of[by_length[taken[length] : taken[length] + count]] = rows
            taken[length] += count
        num_rows += count
    first = np.full(num_rows, len(lengths))
    np.minimum.at(first, row_of, np.arange(len(lengths)))
    rank = np.empty(num_rows, np.int64)
    rank[np.argsort(first)] = np.arange(num_rows)
    return rank[row_of]


def _kinds(counts: list[int], capacity: int, limit: int) -> list[Kind]:
    """The rows that best fit, longest first, makes of `counts[n]` samples of each length n."""
    full: list[Kind] = []
    open_: list[list[Kind]] = [[] for _ in range(capacity + 1)]  # by the space that is left in them

    def add(composition: tuple[int, ...], count: int) -> None:
        space = capacity - sum(composition)
        closed = not space or len(composition) == limit
        (full if closed else open_[space]).append((composition, count))

    for length in range(capacity, 0, -1):
        left = counts[length]
        while left:
            space = next((space for space in range(length, capacity) if open_[space]), None)
            if space is None:
                break
            composition, count = open_[space].pop()
            together = min(space // length, limit - len(composition), max(left // count, 1))
            used = min(count, left)
            if used < count:
                open_[space].append((composition, count - used))
            add(composition + (length,) * together, used)
            left -= used * together
        together = min(capacity // length, limit)
        if left >= together:
            add((length,) * together, left // together)
        if left % together:
            add((length,) * (left % together), 1)
    return full + [kind for kinds in open_ for kind in kinds]


@dataclass
class PackedPlan:
    """The rows of one epoch.

    Attributes:
        samples: (1 + columns, N) int64: the row of each sample, ascending; then what the kind of rows
            wants to know of it.
        num_rows: how many rows there are.
        order: of the rows; None keeps that of the text.
    """

    samples: np.ndarray
    num_rows: int
    order: Permutation | None


class PackedRows(ABC):
    """An endless stream of rows of framed samples, with masked tokens to predict.

    The samples of an epoch are drawn anew; those that fill a row have it for themselves, shorter ones share
    one, with attention kept inside each. The number of rows may differ from epoch to epoch.

    Args:
        view: the tokens.
        sequence_length: T.
        seed: of all draws.
        shuffle: False keeps the order of the view, and each epoch is like the first, for validation.
        masker: chooses the tokens to predict.
        key: names the kind of rows and its settings.

    Attributes:
        rows_per_epoch: rows of the first epoch; subclasses set it when they are ready to plan.
        label_names: what the labels 0, 1, ... of whole samples mean; empty where they have none.
    """

    label_names: ClassVar[tuple[str, ...]] = ()
    rows_per_epoch: int

    def __init__(
        self, view: View, *, sequence_length: int, seed: int, shuffle: bool, masker: Masker, key: str
    ) -> None:
        tokenizer = view.store.tokenizer
        self.view = view
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffle = shuffle
        self.masker = masker
        self.frame = Frame(tokenizer)
        self.pad_id = tokenizer.fill_id
        entries = max(view.num_documents, view.num_tokens // sequence_length)
        self._files = PlanFiles(view, f"{key} {sequence_length} {seed} {shuffle}", entries)
        self._plan = lru_cache(maxsize=2)(self._load_plan)  # a batch may cross from one epoch to the next
        self._ends: list[int] = []  # of each epoch in the stream of rows

    @abstractmethod
    def _draw_samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of an epoch in the order of the text.

        Returns:
            (N,) their lengths, framed; (columns, N) int64 what `_sample` wants to know of each.
        """

    @abstractmethod
    def _sample(self, values: Sequence[int], number: int) -> Sample:
        """A sample from its column of the plan."""

    def plan(self, epoch: int) -> PackedPlan:
        """The plan of an epoch."""
        return self._plan(epoch if self.shuffle else 0)

    def locate(self, global_row: int) -> tuple[int, int]:
        """Epoch, and place in the order of that epoch, of a row of the endless stream."""
        if not self.shuffle:
            return 0, global_row % self.rows_per_epoch
        while not self._ends or global_row >= self._ends[-1]:
            self._ends.append(self._count_rows(len(self._ends)) + (self._ends[-1] if self._ends else 0))
        epoch = bisect_right(self._ends, global_row)
        return epoch, global_row - (self._ends[epoch - 1] if epoch else 0)

    def read(self, global_row: int) -> PackedRow:
        """A row of the endless stream."""
        epoch, place = self.locate(global_row)
        plan = self.plan(epoch)
        row = place if plan.order is None else plan.order.at(place)
        start, end = np.searchsorted(plan.samples[0], [row, row + 1]).tolist()
        columns = plan.samples[1:, start:end].T.tolist()
        return PackedRow([self._sample(values, start + i) for i, values in enumerate(columns)], epoch)

    def collate(self, rows: Sequence[PackedRow]) -> Batch:
        """A batch with masked tokens, and the labels of the samples where they have any."""
        limit = max_samples(self.sequence_length)
        batch = pack_batch(rows, self.sequence_length, self.pad_id, limit)
        self.masker(batch, rows)
        if self.label_names:
            batch.sample_labels = sample_labels(rows, limit)
        return batch

    def filler(self) -> PackedRow:
        """A row without samples."""
        return PackedRow()

    def limit(self, row: PackedRow, tokens: int) -> PackedRow:
        """Samples are taken whole."""
        return row

    def _count_rows(self, epoch: int) -> int:
        """Rows of an epoch."""
        return self._files.recall(epoch, lambda epoch: self.plan(epoch).num_rows)

    def _load_plan(self, epoch: int) -> PackedPlan:
        samples = self._files.load(epoch, self._make_plan)
        num_rows = int(samples[0, -1]) + 1
        order = Permutation(num_rows, self.seed, "rows", epoch) if self.shuffle else None
        return PackedPlan(samples, num_rows, order)

    def _make_plan(self, epoch: int) -> np.ndarray:
        lengths, columns = self._draw_samples(epoch)
        if not len(lengths):
            raise DataError("the text has no tokens to predict", "data", "give a text that is not empty")
        order = np.arange(len(lengths))
        if self.shuffle:
            order = Permutation(len(lengths), self.seed, "packing", epoch)(order)
        rows = pack(lengths, order, self.sequence_length, max_samples(self.sequence_length))
        by_row = np.argsort(rows, kind="stable")
        return np.concatenate([rows[None], columns])[:, by_row]


def sample_labels(rows: Sequence[PackedRow], limit: int) -> torch.Tensor:
    """Labels of the samples of each row, (B, S) int64; IGNORE where a row has fewer."""
    labels = torch.full((len(rows), limit), IGNORE)
    for i, row in enumerate(rows):
        for k, sample in enumerate(row.samples):
            assert isinstance(sample.label, int), sample
            labels[i, k] = sample.label
    return labels
