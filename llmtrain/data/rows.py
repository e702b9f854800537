"""Packed rows of a stream of documents: which token stands where, for every epoch, on every machine.

These are the rows of autoregressive models: documents joined to one stream and cut at every T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.plans import PlanFiles
from llmtrain.data.store import View
from llmtrain.utils.seed import Permutation, derive_seed


@dataclass
class Row:
    """One packed row of T tokens, and the token behind it.

    Attributes:
        ids: (T+1,) int64; `ids[1:]` are the targets of `ids[:-1]`. Behind the data: the end token.
        documents: (T+1,) int32 number of the document inside the row, from 0; padding counts as one more.
        length: number of real input tokens, at most T.
        has_next: whether `ids[length]` is a real token.
    """

    ids: np.ndarray
    documents: np.ndarray
    length: int
    has_next: bool

    def has_label(self, isolate_documents: bool) -> np.ndarray:
        """Which inputs have a next token to predict, (T,) bool.

        Args:
            isolate_documents: the first token of a document is predicted by nothing.
        """
        places = np.arange(len(self.ids) - 1)
        result = places < self.length - (not self.has_next)
        if isolate_documents:
            result &= self.documents[1:] == self.documents[:-1]
        return result


@dataclass
class Plan:
    """The order of one epoch: spans of the store, one after the other.

    Attributes:
        starts: (S,) int64, first token of each span in the store.
        ends: (S,) int64, end of each span in the stream of the epoch.
        order: of the rows; None keeps the order of the stream.
    """

    starts: np.ndarray
    ends: np.ndarray
    order: Permutation | None = None


class StreamRows:
    """Rows of `sequence_length` tokens from an endless stream of epochs over a view.

    In each epoch the documents stand in an order of their own, joined into one stream; the stream is
    turned by a phase, so that rows start elsewhere in every epoch (a document that the turn cuts becomes
    two spans), and is cut into rows, of which the last may be shorter. Every token of the view is an
    input exactly once in an epoch.

    Args:
        view: the tokens.
        sequence_length: T.
        seed: of all orders.
        shuffle: False keeps the order of the view and phase 0, for validation.
        isolate_documents: keep attention and prediction inside each document.
    """

    def __init__(
        self,
        view: View,
        *,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
        isolate_documents: bool = False,
    ) -> None:
        assert view.num_tokens > 0, "a view without tokens"
        self.view = view
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffle = shuffle
        self.isolate_documents = isolate_documents
        self.rows_per_epoch = -(-view.num_tokens // sequence_length)
        entries = view.num_documents if shuffle else 0  # the plan in order of the text is but a view
        self._files = PlanFiles(view, f"stream {seed}", entries)
        self._plan = lru_cache(maxsize=2)(self._load_plan)  # a batch may cross from one epoch to the next

    def locate(self, global_row: int) -> tuple[int, int]:
        """Epoch, and place in the order of that epoch, of a row of the endless stream."""
        return divmod(global_row, self.rows_per_epoch)

    def read(self, global_row: int) -> Row:
        """A row of the endless stream."""
        epoch, place = self.locate(global_row)
        plan = self.plan(epoch)
        if plan.order is not None:
            place = plan.order.at(place)
        return self._cut(plan, place * self.sequence_length)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows as a batch for an autoregressive model; see `causal_batch`."""
        return causal_batch(rows, self.isolate_documents)

    def filler(self) -> Row:
        """A row without real tokens and labels."""
        length = self.sequence_length + 1
        return Row(np.zeros(length, np.int64), np.zeros(length, np.int32), length=0, has_next=False)

    def limit(self, row: Row, tokens: int) -> Row:
        """The row with only its first so many tokens as inputs."""
        if tokens >= row.length:
            return row
        return replace(row, length=tokens, has_next=True)

    def _cut(self, plan: Plan, start: int) -> Row:
        """The row that starts at a token of the epoch's stream."""
        stop = min(start + self.sequence_length + 1, self.view.num_tokens)
        first = int(np.searchsorted(plan.ends, start, side="right"))
        last = int(np.searchsorted(plan.ends, stop, side="left")) + 1
        ends = np.asarray(plan.ends[first:last])
        begin = int(plan.ends[first - 1]) if first else 0
        begins = np.concatenate([[begin], ends[:-1]])
        lengths = np.minimum(ends, stop) - np.maximum(begins, start)
        shift = plan.starts[first:last] - begins
        positions = np.arange(start, stop) + np.repeat(shift, lengths)
        ids = np.full(self.sequence_length + 1, self.view.store.end_id, dtype=np.int64)
        ids[: stop - start] = self.view.store.gather(positions)
        documents = np.full(len(ids), len(lengths), dtype=np.int32)
        documents[: stop - start] = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        length = min(stop - start, self.sequence_length)
        return Row(ids, documents, length, has_next=stop - start > length)

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch."""
        return self._plan(epoch if self.shuffle else 0)

    def _load_plan(self, epoch: int) -> Plan:
        starts, ends = self._files.load(epoch, self._make_plan)
        order = Permutation(self.rows_per_epoch, self.seed, "rows", epoch) if self.shuffle else None
        return Plan(starts, ends, order)

    def _make_plan(self, epoch: int) -> np.ndarray:
        """Starts and ends of the spans of a plan, (2, S)."""
        starts, ends = self.view.spans
        if self.shuffle:
            num = self.view.num_documents
            order = Permutation(num, self.seed, "documents", epoch)(np.arange(num))
            starts, lengths = starts[order], self.view.lengths[order]
            phase = derive_seed(self.seed, "phase", epoch) % self.view.num_tokens
            starts, lengths = _turn(starts, lengths, phase)
        else:
            lengths = ends - starts
        return np.stack([starts, np.cumsum(lengths)])


def _turn(starts: np.ndarray, lengths: np.ndarray, phase: int) -> tuple[np.ndarray, np.ndarray]:
    """Start a stream of spans `phase` tokens later and put what was before at its end."""
    ends = np.cumsum(lengths)
    k = int(np.searchsorted(ends, phase, side="right"))
    inside = phase - int(ends[k] - lengths[k])
    order = np.roll(np.arange(len(starts)), -k)
    starts, lengths = starts[order], lengths[order]
    if inside:
        starts = np.append(starts, starts[0])
        lengths = np.append(lengths, inside)
        starts[0] += inside
        lengths[0] -= inside
    return starts, lengths


def causal_batch(rows: Sequence[Row], isolate_documents: bool) -> Batch:
    """Rows as a batch in which every token is to be predicted from those before it.

    Args:
        rows: B rows of T tokens.
        isolate_documents: keep attention, positions and prediction inside each document.

    Returns:
        ids and labels (B, T); the label is IGNORE at padding, where nothing follows and, with isolated
        documents, where the next token belongs to another one. Isolated documents also give documents
        (B, T), and positions (B, T) that start at 0 with each document in the row.
    """
    ids = np.stack([row.ids for row in rows])
    has_label = np.stack([row.has_label(isolate_documents) for row in rows])
    batch = Batch(
        ids=torch.from_numpy(np.ascontiguousarray(ids[:, :-1])),
        labels=torch.from_numpy(np.where(has_label, ids[:, 1:], IGNORE)),
        num_tokens=sum(row.length for row in rows),
    )
    if isolate_documents:
        documents = np.stack([row.documents[:-1] for row in rows])
        batch.documents = torch.from_numpy(documents)
        batch.positions = torch.from_numpy(_positions(documents))
    return batch


def _positions(documents: np.ndarray) -> np.ndarray:
    """Distance of each token to the start of its document in the row, (B, T) int64."""
    places = np.broadcast_to(np.arange(documents.shape[1], dtype=np.int64), documents.shape)
    starts = np.zeros_like(places)
    starts[:, 1:] = np.where(documents[:, 1:] != documents[:, :-1], places[:, 1:], 0)
    return places - np.maximum.accumulate(starts, axis=1)
