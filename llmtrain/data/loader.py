"""Who gets which rows: global batches that do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from llmtrain.data.ahead import ReadAhead
from llmtrain.data.batch import Batch

STEPS_AHEAD = 2
"""Optimizer steps whose batches are ready before they are asked for."""


class Rows(Protocol):
    """An endless stream of rows, and how they become batches. The type of a row is its own affair.

    Attributes:
        sequence_length: T, most tokens in a row.
        rows_per_epoch: rows of the first epoch; later ones may differ where rows are planned anew.
    """

    sequence_length: int
    rows_per_epoch: int

    def read(self, global_row: int) -> Any:
        """A row of the stream."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """A batch of rows; a filler row gets no label."""

    def filler(self) -> Any:
        """A row without tokens, for shapes that have to be filled."""

    def limit(self, row: Any, tokens: int) -> Any:
        """A row that is cut to so many tokens where its kind of rows can be cut, else the row."""


class Loader:
    """The microbatches of one process, step after step, read ahead in a thread.

    The global batch at row r is rows [r, r + batch_size) for any number of processes and any
    accumulation: microbatch j of rank k takes the rows from (j * world + k) * micro_batch_size on.

    Args:
        rows: the stream.
        batch_size: rows of the global batch.
        micro_batch_size: rows of one microbatch of one process.
        rank: number of this process among those that share the batch.
        world: how many they are.
        start_row: row of the stream to start with; the `row` of the loader that is continued.
        pin: copy batches to page-locked memory.

    Attributes:
        row: row of the stream that the next step starts with: the whole state of the loader.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        micro_batch_size: int,
        rank: int,
        world: int,
        start_row: int = 0,
        pin: bool = False,
    ) -> None:
        assert batch_size % (micro_batch_size * world) == 0, (batch_size, micro_batch_size, world)
        assert 0 <= rank < world, (rank, world)
        self.row = start_row
        self._rows = rows
        self._batch_size = batch_size
        self._micro = micro_batch_size
        self._offsets = range(rank * micro_batch_size, batch_size, micro_batch_size * world)
        self._pin = pin
        self._ahead = ReadAhead(self._steps(start_row), STEPS_AHEAD)

    def _steps(self, row: int) -> Iterator[list[Batch]]:
        while True:
            yield [self._microbatch(row + offset) for offset in self._offsets]
            row += self._batch_size

    def _microbatch(self, start: int) -> Batch:
        batch = self._rows.collate([self._rows.read(start + i) for i in range(self._micro)])
        return batch.pin_memory() if self._pin else batch

    def next(self) -> list[Batch]:
        """The microbatches of this process for the next step; an error while reading is raised here."""
        batches = next(self._ahead)
        self.row += self._batch_size
        return batches

    @property
    def wait_seconds(self) -> float:
        """Time that `next` has waited for data; may be set back to 0."""
        return self._ahead.wait_seconds

    @wait_seconds.setter
    def wait_seconds(self, seconds: float) -> None:
        self._ahead.wait_seconds = seconds

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()


def evaluation_batches(
    rows: Rows,
    batch_size: int,
    rank: int,
    world: int,
    max_tokens: int | None = None,
) -> Iterator[Batch]:
    """One epoch in which every row is seen by exactly one process.

    Every process gets the same number of batches with the same number of rows; what is missing at the end is
    filled with rows without labels.

    Args:
        rows: the rows, not shuffled.
        batch_size: rows of a batch at most; fewer where there are not so many for each process.
        rank: number of this process.
        world: how many processes there are.
        max_tokens: take only the first so many inputs. Default: all.
    """
    length = rows.sequence_length
    num = rows.rows_per_epoch
    if max_tokens is not None:
        num = min(num, -(-max_tokens // length))
    size = max(1, min(batch_size, -(-num // world)))
    stride = size * world
    for start in range(rank * size, -(-num // stride) * stride, stride):
        chosen = []
        for i in range(start, start + size):
            row = rows.read(i) if i < num else rows.filler()
            if max_tokens is not None and i < num:
                row = rows.limit(row, max_tokens - i * length)
            chosen.append(row)
        yield rows.collate(chosen)
