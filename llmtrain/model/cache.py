"""Keys and values of the tokens that a decoder has read, so that each further token costs one position.

Rows of a batch may have lengths of their own. Every row starts at slot 0, and what is read for a shorter one
beyond its end stands behind all that its tokens look at, until it is written over: a row's slot is its
position, and nothing of one row depends on the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmtrain.data.batch import Batch

STEP = 256
"""Slots are made in multiples of it, at least half as many again as there are."""


class KVCache:
    """What a decoder has read, for some rows.

    Args:
        num_rows: B.

    Attributes:
        lengths: tokens of each row.
        mask: where the tokens that are being read may look, (B, 1, T, S) bool; None: see `cached_attention`.
        blocks: of each transformer block, by its number.
    """

    def __init__(self, num_rows: int) -> None:
        self.lengths = [0] * num_rows
        self.blocks: dict[str, BlockCache] = {}
        self.mask: Tensor | None = None

    def read(self, ids_BT: Tensor, counts: Sequence[int] | None = None) -> Batch:
        """Make room for further tokens; the batch is for one forward pass with this cache.

        Args:
            ids_BT: tokens that follow those read so far.
            counts: how many of them are real in each row; the rest fills it up. Default: all.
        """
        length = ids_BT.shape[1]
        starts = self.lengths
        self.lengths = [start + n for start, n in zip(starts, counts or [length] * len(starts), strict=True)]
        begin = torch.tensor(starts, device=ids_BT.device)[:, None]
        positions_BT = begin + torch.arange(length, device=ids_BT.device)
        same = len(set(starts)) == 1
        first = starts[0] if same else None
        if first == 0 or (same and length == 1):
            self.mask = None  # rows that have no past, or all of it: what attention does by itself
        else:
            slots = torch.arange(max(starts) + length, device=ids_BT.device)
            self.mask = (slots <= positions_BT[..., None])[:, None]
        self._place: slice | Tensor = slice(first, first + length) if first is not None else positions_BT
        self._end = max(starts) + length
        self._positions = positions_BT
        return Batch(ids_BT, positions=positions_BT)

    def mask_within(self, window: int) -> Tensor | None:
        """`mask` for attention that looks at so many tokens, the one that looks included."""
        if self._end <= window:
            return self.mask
        slots = torch.arange(self._end, device=self._positions.device)
        behind = self._positions[..., None] - slots
        return ((behind >= 0) & (behind < window))[:, None]

    def block(self, number: str) -> BlockCache:
        """The part of a block."""
        if number not in self.blocks:
            self.blocks[number] = BlockCache()
        block = self.blocks[number]
        block.place, block.end = self._place, self._end
        return block

    def select(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, each as often as it is named."""
        self.lengths = [self.lengths[row] for row in rows]
        for block in self.blocks.values():
            block.select(rows)

    def forget(self, length: int) -> None:
        """Go on as if no row had read more than so many tokens."""
        self.lengths = [min(length, one) for one in self.lengths]

    def replace(self, row: int, other: KVCache) -> None:
        """Put the only row of another cache in the place of a row."""
        self.lengths[row] = other.lengths[0]
        for number, block in other.blocks.items():
            self.blocks[number].replace(row, block, other.lengths[0])


class BlockCache:
    """Keys and values of one block, (B, G, S, K) each, with slots to spare.

    Attributes:
        place: slots of the tokens that are being read: of all rows, or (B, T) of each.
        end: the first slot behind them in every row.
    """

    place: slice | Tensor
    end: int

    def __init__(self) -> None:
        self.keys = self.values = torch.empty(0)

    def keep(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of the tokens that are being read.

        Returns:
            those of all tokens up to the longest row, (B, G, S, K) each.
        """
        if self.keys.numel() == 0 or self.end > self.keys.shape[2]:
            self._grow(k_BGTK)
        if isinstance(self.place, slice):
            self.keys[:, :, self.place] = k_BGTK
            self.values[:, :, self.place] = v_BGTK
        else:
            rows = torch.arange(len(k_BGTK), device=k_BGTK.device)[:, None]
            self.keys[rows, :, self.place] = k_BGTK.transpose(1, 2)
            self.values[rows, :, self.place] = v_BGTK.transpose(1, 2)
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]

    def _grow(self, like_BGTK: Tensor) -> None:
        rows, groups, _, width = like_BGTK.shape
        there = 0 if self.keys.numel() == 0 else self.keys.shape[2]
        slots = -(-max(self.end, there + there // 2) // STEP) * STEP
        old = self.keys, self.values
        # Slots of nobody are looked at behind a mask, where numbers that are none would still spread.
        self.keys = like_BGTK.new_zeros(rows, groups, slots, width)
        self.values = torch.zeros_like(self.keys)
        if there:
            self.keys[:, :, :there], self.values[:, :, :there] = old

    def select(self, rows: Sequence[int]) -> None:
        """See `KVCache.select`."""
        index = torch.tensor(rows, device=self.keys.device)
        self.keys, self.values = (part.index_select(0, index) for part in (self.keys, self.values))

    def replace(self, row: int, other: BlockCache, length: int) -> None:
        """See `KVCache.replace`; there are at least as many slots as the other has tokens."""
        self.keys[row, :, :length] = other.keys[0, :, :length]
        self.values[row, :, :length] = other.values[0, :, :length]
