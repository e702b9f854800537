"""Samples: framed sequences such as `[CLS] a [SEP] b [SEP]`, alone or packed into rows, as batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llmtrain.data.batch import Batch
from llmtrain.data.tokenizer import Tokenizer


@dataclass
class Sample:
    """One framed sequence of n tokens.

    Attributes:
        ids: (n,) int64.
        segments: (n,) int64, 0 for the first text, 1 for the second.
        number: of the sample in its epoch or data set; masks are drawn by it.
        label: of the sample as a whole; what it means is the objective's.
        cut: tokens of its text that were left out, for lack of room.
    """

    ids: np.ndarray
    segments: np.ndarray
    number: int = 0
    label: int | float | list[float] | None = None
    cut: int = 0


@dataclass
class PackedRow:
    """Samples that share a row of T tokens, one behind the other; what is left is padding.

    Attributes:
        samples: may be empty: a row that only fills a shape.
        epoch: that the row belongs to; masks are drawn by it.
    """

    samples: list[Sample] = field(default_factory=list)
    epoch: int = 0

    @property
    def length(self) -> int:
        """Real tokens."""
        return sum(len(sample.ids) for sample in self.samples)


class Frame:
    """How texts are put between special tokens.

    With [CLS] and [SEP] (or their like): `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` (Devlin et al. 2019);
    with an end token only: `a <end>` and `a <end> b <end>`.

    Attributes:
        start: ids in front of the first text.
        end: ids behind each text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        has_frame = tokenizer.cls_id is not None and tokenizer.sep_id is not None
        self.start: list[int] = [tokenizer.cls_id] if has_frame else []  # type: ignore[list-item]
        self.end: list[int] = [tokenizer.sep_id] if has_frame else [tokenizer.end_id]  # type: ignore[list-item]

    def overhead(self, pair: bool) -> int:
        """Special tokens in a framed text or pair."""
        return len(self.start) + len(self.end) * (2 if pair else 1)

    def join(self, first: np.ndarray, second: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and segments, (n,) int64 each, of a text or a pair of texts."""
        parts = [np.array(self.start, np.int64), first.astype(np.int64), np.array(self.end, np.int64)]
        border = sum(map(len, parts))
        if second is not None:
            parts += [second.astype(np.int64), np.array(self.end, np.int64)]
        ids = np.concatenate(parts)
        segments = (np.arange(len(ids)) >= border).astype(np.int64)
        return ids, segments


def pack_batch(
    rows: Sequence[PackedRow], length: int, pad_id: int, max_samples: int = 1, last: bool = False
) -> Batch:
    """Rows of samples as a batch without labels.

    Args:
        rows: B rows of at most T real tokens.
        length: T.
        pad_id: token behind the last sample.
        max_samples: S, samples of a row at most.
        last: let the last token of a sample stand for it, not the first.

    Returns:
        ids, positions (from 0 in each sample), documents, segments (B, T); first (B, S).
    """
    shape = (len(rows), length)
    ids = np.full(shape, pad_id, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    documents = np.zeros(shape, np.int32)
    first = np.zeros((len(rows), max_samples), np.int64)
    for i, row in enumerate(rows):
        assert len(row.samples) <= max_samples, (len(row.samples), max_samples)
        assert row.length <= length, (row.length, length)
        start = 0
        for k, sample in enumerate(row.samples):
            end = start + len(sample.ids)
            ids[i, start:end] = sample.ids
            segments[i, start:end] = sample.segments
            positions[i, start:end] = np.arange(end - start)
            documents[i, start:end] = k
            first[i, k] = end - 1 if last else start
            start = end
        documents[i, start:] = len(row.samples)
        positions[i, start:] = np.arange(length - start)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        documents=torch.from_numpy(documents),
        segments=torch.from_numpy(segments),
        first=torch.from_numpy(first),
        num_tokens=sum(row.length for row in rows),
    )
