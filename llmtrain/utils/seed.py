"""Randomness as a function: every random choice is keyed by names and counters, never by history."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as ``(seed, "dropout", step, microbatch)``; equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> np.random.Generator:
    """A numpy generator for one key; the same key always gives the same numbers."""
    return np.random.Generator(np.random.Philox(derive_seed(*key)))


class Permutation:
    """A pseudo-random permutation of ``range(size)`` that is computed, not stored.

    A four-round Feistel network over the next even number of bits, walked until the result is inside
    the range (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Any element costs O(1)
    time and no memory, so that every process can ask for any place of an order of billions.

    Args:
        size: number of elements, at least 1.
        key: what the order depends upon, for example ``(seed, "rows", epoch)``.
    """

    ROUNDS = 4
    WORD = (1 << 64) - 1

    def __init__(self, size: int, *key: int | str) -> None:
        assert size >= 1, size
        self.size = size
        self.half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self.mask = (1 << self.half_bits) - 1
        self.keys = [derive_seed("feistel", number, *key) for number in range(self.ROUNDS)]

    def _encrypt(self, value: Any) -> Any:
        """One pass of the network; `value` is an int or an array of uint64."""
        left, right = value >> self.half_bits, value & self.mask
        for key in self.keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & self.WORD
            mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & self.WORD
            left, right = right, left ^ ((mixed ^ (mixed >> 32)) & self.mask)
        return (left << self.half_bits) | right

    def at(self, index: int) -> int:
        """The element at one position; plain ints are much faster than an array of one."""
        value = self._encrypt(index)
        while value >= self.size:
            value = self._encrypt(value)
        return int(value)

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Map positions, each in ``range(size)``, to elements (int64, same shape)."""
        with np.errstate(over="ignore"):
            result = self._encrypt(np.asarray(index).astype(np.uint64))
            while (outside := result >= self.size).any():
                result[outside] = self._encrypt(result[outside])
        return result.astype(np.int64)
