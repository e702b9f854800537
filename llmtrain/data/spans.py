"""Rows for masked language modelling: documents cut into spans, `[CLS] span [SEP]`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from llmtrain.data.mask import Masker
from llmtrain.data.packed import PackedRows
from llmtrain.data.samples import Sample
from llmtrain.data.store import View
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.seed import generator


class Contents:
    """The documents of a view without their end tokens, which frames replace.

    Attributes:
        starts: (documents,) int64, first token in the store.
        lengths: (documents,) int64, tokens; may be 0.
    """

    def __init__(self, view: View) -> None:
        self._store = view.store
        self.starts, ends = view.spans
        self.lengths = ends - self.starts - (view.store.gather(ends - 1) == view.store.end_id)

    @cached_property
    def ends(self) -> np.ndarray:
        """(documents,) int64, end of each document when all are joined, end tokens left out."""
        return np.cumsum(self.lengths)

    @cached_property
    def begins(self) -> np.ndarray:
        """(documents,) int64, start of each document when all are joined."""
        return self.ends - self.lengths

    @cached_property
    def shifts(self) -> np.ndarray:
        """(documents,) int64, from a place in the joined documents to the place in the store."""
        return self.starts - self.begins

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.ends[-1])

    def borders(self, start: int, end: int) -> np.ndarray:
        """Where documents start in a part [start, end) of the joined documents, ascending."""
        first, last = np.searchsorted(self.begins, [start, end])
        return np.unique(self.begins[first:last])

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) of the joined documents, int64."""
        first, last = np.searchsorted(self.ends, [start, end - 1], side="right").tolist()
        shifts = self.shifts[first : last + 1]
        ends = np.minimum(self.ends[first : last + 1], end)
        lengths = np.diff(ends, prepend=start)
        return self._store.gather(np.arange(start, end) + np.repeat(shifts, lengths))


def cut(lengths: np.ndarray, size: int, phases: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into spans.

    Args:
        lengths: (documents,) tokens.
        size: tokens of a span; the first and the last of a document may be shorter.
        phases: (documents,) tokens of the first span, 0 to size - 1; 0 means `size`. Documents that fit
            into one span are not cut.

    Returns:
        document, first token in the document, token after the last: (spans,) int64 each.
    """
    phases = np.where(lengths > size, phases, 0)
    numbers = -(-(lengths - phases) // size) + (phases > 0)
    document = np.repeat(np.arange(len(lengths)), numbers)
    number = np.arange(len(document)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    first_end = np.where(phases > 0, phases, size)[document]
    ends = np.minimum(first_end + number * size, lengths[document])
    starts = np.maximum(first_end + (number - 1) * size, 0)
    return document, starts, ends


class SpanRows(PackedRows):
    """Rows of spans of documents, every token of the text once in an epoch.

    In each epoch each document is cut at other places.

    Args:
        view: the tokens.
        sequence_length: T.
        seed: of all draws.
        shuffle: False keeps the order of the view, and all epochs alike, for validation.
        masker: chooses the tokens to predict.

    Raises:
        ConfigError: a row is too short for a span.
    """

    def __init__(self, view: View, *, sequence_length: int, seed: int, shuffle: bool, masker: Masker) -> None:
        super().__init__(
            view, sequence_length=sequence_length, seed=seed, shuffle=shuffle, masker=masker, key="spans"
        )
        self.size = sequence_length - self.frame.overhead(pair=False)
        if self.size < 1:
            raise ConfigError(
                f"a row of {sequence_length} tokens has no room for text between special tokens",
                "train.sequence_length",
                f"make it at least {self.frame.overhead(pair=False) + 1}",
            )
        self.contents = Contents(view)
        self.rows_per_epoch = self._count_rows(0)

    def _draw_samples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        contents = self.contents
        phases = np.zeros(len(contents.lengths), np.int64)
        if self.shuffle:
            phases = generator(self.seed, "spans", epoch).integers(0, self.size, len(phases))
        document, starts, ends = cut(contents.lengths, self.size, phases)
        shift = contents.starts[document]
        return ends - starts + self.frame.overhead(pair=False), np.stack([starts + shift, ends + shift])

    def _sample(self, values: Sequence[int], number: int) -> Sample:
        start, end = values
        ids, segments = self.frame.join(self.view.read(start, end))
        return Sample(ids, segments, number)
