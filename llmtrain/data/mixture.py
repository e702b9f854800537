"""Rows of several sources in one stream; whose a row is depends on nothing but its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from llmtrain.data.batch import Batch
from llmtrain.data.loader import Rows

LONGEST_PERIOD = 1 << 16
"""Rows after which the order of the sources repeats itself, at most (but for a row of each source whose share
is less than one); shares are exact to a part in that."""


class Shares:
    """Who has which row of an endless stream.

    Within a period every source has its exact number of rows, spread as evenly as they go: row n of a
    source with m rows stands at the time (n + 1/2) / m (Webster's method of apportionment). So every
    stretch of the stream, every batch too, has about the same mixture, and any row is found at once.

    Args:
        weights: of each source, greater than 0. They are taken as the decimal numbers that they are
            written as: 0.7 and 0.3 give a period of 10 rows.

    Attributes:
        counts: rows of each source in a period.
        period: rows of a period.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.counts = whole_shares(weights)
        self.period = sum(self.counts)
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        numbers = np.concatenate([np.arange(count) for count in self.counts])
        # equal fractions of whole numbers are equal as floats too, and the order of the sources parts them
        order = np.argsort((numbers + 0.5) / np.array(self.counts)[sources], kind="stable")
        self._source, self._number = sources[order], numbers[order]

    def locate(self, row: int) -> tuple[int, int]:
        """The source of a row, and which of the source's own rows it is."""
        period, place = divmod(row, self.period)
        source = int(self._source[place])
        return source, period * self.counts[source] + int(self._number[place])

    def count(self, rows: int) -> list[int]:
        """How many of the first so many rows each source has."""
        periods, rest = divmod(rows, self.period)
        begun = np.bincount(self._source[:rest], minlength=len(self.counts)).tolist()
        return [periods * count + more for count, more in zip(self.counts, begun, strict=True)]


def whole_shares(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers in the same relation, as small as they go; rounded to a sum of
    `LONGEST_PERIOD` where they would be greater. No share is 0."""
    exact = [Fraction(repr(weight)) for weight in weights]
    assert exact, "no sources"
    assert min(exact) > 0, weights
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = np.lcm.reduce(np.array([share.denominator for share in shares], dtype=object))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    counts = [max(1, int(share * LONGEST_PERIOD)) for share in shares]
    lacking = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i] * LONGEST_PERIOD, i))
    for i in lacking[: max(0, LONGEST_PERIOD - sum(counts))]:
        counts[i] += 1
    return counts


class MixedRow(NamedTuple):
    """A row and the number of the source that it is from."""

    source: int
    row: Any


class MixedRows:
    """The rows of several sources as one stream.

    An epoch is as many rows as the sources have together in their first ones.

    Args:
        sources: the rows of each source, by name; all of one kind and length.
        weights: of each source; None gives each as many rows as it has, so that all are read equally often.

    Attributes:
        shares: which row is whose.
        names: of the sources, in order.
    """

    def __init__(self, sources: Mapping[str, Rows], weights: Sequence[float] | None) -> None:
        self.names = list(sources)
        self.sources = list(sources.values())
        sizes = [rows.rows_per_epoch for rows in self.sources]
        self.sequence_length = self.sources[0].sequence_length
        self.rows_per_epoch = sum(sizes)
        self.shares = Shares(sizes if weights is None else weights)

    def read(self, global_row: int) -> MixedRow:
        """A row of the endless stream."""
        source, row = self.shares.locate(global_row)
        return MixedRow(source, self.sources[source].read(row))

    def collate(self, rows: Sequence[MixedRow]) -> Batch:
        """A batch in the order of the rows; each source makes its own part of it."""
        of_source: dict[int, list[int]] = {}
        for place, mixed in enumerate(rows):
            of_source.setdefault(mixed.source, []).append(place)
        batches = [
            self.sources[source].collate([rows[place].row for place in places])
            for source, places in of_source.items()
        ]
        return batches[0] if len(batches) == 1 else join(batches, list(of_source.values()))

    def filler(self) -> MixedRow:
        """A row without tokens."""
        return MixedRow(0, self.sources[0].filler())

    def limit(self, row: MixedRow, tokens: int) -> MixedRow:
        """The row cut to so many tokens, where its kind of rows can be cut."""
        return MixedRow(row.source, self.sources[row.source].limit(row.row, tokens))

    def epochs(self, rows: int) -> dict[str, float]:
        """How often each source is read in the first so many rows, by name."""
        counts = self.shares.count(rows)
        return {
            name: count / source.rows_per_epoch
            for name, source, count in zip(self.names, self.sources, counts, strict=True)
        }


def join(batches: Sequence[Batch], places: Sequence[Sequence[int]]) -> Batch:
    """One batch of several, in which row i of batch k comes to stand at `places[k][i]`."""
    order = torch.from_numpy(np.argsort(np.concatenate([np.array(part) for part in places])))
    values: dict[str, Any] = {}
    for field in fields(Batch):
        parts = [getattr(batch, field.name) for batch in batches]
        if isinstance(parts[0], torch.Tensor):
            values[field.name] = torch.cat(parts)[order]
        elif field.name == "num_tokens":
            values[field.name] = sum(parts)
    return Batch(**values)
