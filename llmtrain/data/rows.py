"""Packed rows of a stream of documents: which token stands where, for every epoch, on every machine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.data.store import View
from llmtrain.utils.io import file_lock
from llmtrain.utils.seed import Permutation, derive_seed

PLAN_FILE_SPANS = 1 << 18
"""From so many spans on, the plan of an epoch is a memory-mapped file that the processes share."""


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
    """

    def __init__(
        self,
        view: View,
        *,
        sequence_length: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        assert view.num_tokens > 0, "a view without tokens"
        self.view = view
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffle = shuffle
        self.rows_per_epoch = -(-view.num_tokens // sequence_length)
        self._plans: dict[int, Plan] = {}

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
        """The plan of an epoch; those of the last two epochs asked for are kept."""
        epoch = epoch if self.shuffle else 0
        if epoch not in self._plans:
            while len(self._plans) >= 2:
                del self._plans[min(self._plans)]
            big = self.shuffle and self.view.num_documents >= PLAN_FILE_SPANS
            plan = self._shared_plan(epoch) if big else self._make_plan(epoch)
            if self.shuffle:
                plan.order = Permutation(self.rows_per_epoch, self.seed, "rows", epoch)
            self._plans[epoch] = plan
        return self._plans[epoch]

    def _make_plan(self, epoch: int) -> Plan:
        starts, ends = self.view.spans
        if self.shuffle:
            num = self.view.num_documents
            order = Permutation(num, self.seed, "documents", epoch)(np.arange(num))
            starts, lengths = starts[order], self.view.lengths[order]
            phase = derive_seed(self.seed, "phase", epoch) % self.view.num_tokens
            starts, lengths = _turn(starts, lengths, phase)
        else:
            lengths = ends - starts
        return Plan(starts, np.cumsum(lengths))

    def _shared_plan(self, epoch: int) -> Plan:
        """The plan from a file beside the store; whoever needs it first makes it."""
        folder = self.view.store.path / "plans"
        name = hashlib.sha256(f"{self.view.key} {self.seed}".encode()).hexdigest()[:16]
        path = folder / f"{name}-{epoch}.npy"
        try:
            folder.mkdir(exist_ok=True)
            with file_lock(folder / f"{name}.lock"):
                if not path.exists():
                    self._save_plan(path, epoch)
                    _remove_older(folder, name, epoch)
                starts, ends = np.load(path, mmap_mode="r").view(np.ndarray)
        except OSError:  # a read-only or full disk: the plan fits into memory all the same
            return self._make_plan(epoch)
        return Plan(starts, ends)

    def _save_plan(self, path: Path, epoch: int) -> None:
        plan = self._make_plan(epoch)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.save(file, np.stack([plan.starts, plan.ends]))
        temporary.replace(path)


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


def _remove_older(folder: Path, name: str, epoch: int) -> None:
    """Remove plans of epochs before the last one; who still reads one keeps it until it is closed."""
    for file in folder.glob(f"{name}-*.npy"):
        if int(file.stem.rsplit("-", 1)[1]) < epoch - 1:
            file.unlink(missing_ok=True)
