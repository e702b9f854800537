"""Matrices of which every process has a share, whole in one process each: for what needs all of a matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # it takes a second, which a training on one process need not wait
    from torch.distributed.tensor import DTensor


class Piece(NamedTuple):
    """What a process has of a matrix."""

    rank: int
    rows: slice
    columns: slice

    @property
    def numel(self) -> int:
        """Numbers in it."""
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)


def pieces_of(matrix: DTensor) -> list[Piece]:
    """What each process of its mesh has of a matrix, in the order of the mesh."""
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

    mesh, pieces = matrix.device_mesh, []
    for place in itertools.product(*map(range, mesh.shape)):
        (height, width), (row, column) = _compute_local_shape_and_global_offset(
            matrix.shape, mesh.shape, list(place), matrix.placements
        )
        rank = int(mesh.mesh[place])
        pieces.append(Piece(rank, slice(row, row + height), slice(column, column + width)))
    return pieces


def is_shared_out(parameter: Tensor) -> bool:
    """Whether a process has less than all of a matrix."""
    return hasattr(parameter, "placements") and any(
        piece.numel < parameter.numel() for piece in pieces_of(cast("DTensor", parameter))
    )


def choose_owners(costs: Sequence[float], ranks: Sequence[int]) -> list[int]:
    """A rank for each piece of work, so that all have about as much: the dearest first, each to the one with
    the least so far."""
    loads = dict.fromkeys(ranks, 0.0)
    owners = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        owners[number] = min(loads, key=lambda rank: loads[rank])
        loads[owners[number]] += costs[number]
    return owners


class Owners:
    """Brings the shares of each matrix to its owner, and the owner's result to all that have a share.

    Of copies (replicas of the model) one is sent. A pair of processes exchanges one message for all its
    matrices, each way.

    Args:
        matrices: shared out over the processes of one mesh, the same in each of them.
        rank: of this process.
    """

    def __init__(self, matrices: Sequence[DTensor], rank: int) -> None:
        self.rank = rank
        self.shapes = [tuple(matrix.shape) for matrix in matrices]
        self.pieces = [pieces_of(matrix) for matrix in matrices]
        ranks = [piece.rank for piece in self.pieces[0]] if matrices else []
        costs = [min(shape) * matrix.numel() for shape, matrix in zip(self.shapes, matrices, strict=True)]
        self.owners = choose_owners(costs, ranks)
        self.sent = [_without_copies(pieces) for pieces in self.pieces]
        self.own = [next(piece for piece in pieces if piece.rank == rank) for pieces in self.pieces]

    def gather(self, shares: Sequence[Tensor]) -> dict[int, Tensor]:
        """The matrices that this process owns, by their numbers. Collective.

        Args:
            shares: of this process, of all matrices.
        """
        outgoing: dict[int, list[Tensor]] = {}
        incoming: dict[int, int] = {}
        for share, owner, pieces in zip(shares, self.owners, self.sent, strict=True):
            if any(piece.rank == self.rank for piece in pieces):
                outgoing.setdefault(owner, []).append(share.flatten())
            if owner == self.rank:
                for piece in pieces:
                    incoming[piece.rank] = incoming.get(piece.rank, 0) + piece.numel
        received = _Reader(exchange(outgoing, incoming, self.rank, shares[0]))
        whole: dict[int, Tensor] = {}
        for number, owner in enumerate(self.owners):
            if owner == self.rank:
                whole[number] = shares[0].new_empty(self.shapes[number])
                for piece in self.sent[number]:
                    received.read(piece.rank, whole[number][piece.rows, piece.columns])
        return whole

    def scatter(self, whole: Mapping[int, Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """The shares of this process, of all matrices. Collective.

        Args:
            whole: matrices that this process owns, by their numbers.
            like: of the shapes and the type of the shares.
        """
        outgoing: dict[int, list[Tensor]] = {}
        incoming: dict[int, int] = {}
        for number, matrix in whole.items():
            for piece in self.pieces[number]:
                outgoing.setdefault(piece.rank, []).append(matrix[piece.rows, piece.columns].flatten())
        for owner, piece in zip(self.owners, self.own, strict=True):
            incoming[owner] = incoming.get(owner, 0) + piece.numel
        received = _Reader(exchange(outgoing, incoming, self.rank, like[0]))
        shares = [torch.empty_like(one) for one in like]
        for share, owner in zip(shares, self.owners, strict=True):
            received.read(owner, share)
        return shares


def _without_copies(pieces: Iterable[Piece]) -> list[Piece]:
    """The first of those that cover the same part."""
    first: dict[tuple[int, ...], Piece] = {}
    for piece in pieces:
        place = piece.rows.start, piece.rows.stop, piece.columns.start, piece.columns.stop
        first.setdefault(place, piece)
    return list(first.values())


class _Reader:
    """Messages, read from their beginnings on."""

    def __init__(self, messages: Mapping[int, Tensor]) -> None:
        self.messages = messages
        self.places = dict.fromkeys(messages, 0)

    def read(self, rank: int, into: Tensor) -> None:
        """Fill a tensor with what comes next from a process."""
        if into.numel():
            start = self.places[rank]
            self.places[rank] = start + into.numel()
            into.copy_(self.messages[rank][start : self.places[rank]].view(into.shape))


def exchange(
    outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, int], rank: int, like: Tensor
) -> dict[int, Tensor]:
    """Send one message to each of some processes, and receive one from each of some. Collective.

    Args:
        outgoing: parts of the message for each rank.
        incoming: numbers in the message from each rank.
        rank: of this process; its message to itself is not sent.
        like: of the type of the messages.
    """
    messages = {peer: torch.cat(list(parts)) for peer, parts in outgoing.items()}
    received = {peer: like.new_empty(size) for peer, size in incoming.items() if peer != rank}
    sends = [
        dist.P2POp(dist.isend, message, peer)
        for peer, message in messages.items()
        if peer != rank and message.numel()
    ]
    receives = [dist.P2POp(dist.irecv, into, peer) for peer, into in received.items() if into.numel()]
    if sends or receives:
        for work in dist.batch_isend_irecv(sends + receives):
            work.wait()
    return received | ({rank: messages[rank]} if rank in messages else {})
