"""Randomness as a function: every random choice is keyed by names and counters, never by history."""

from __future__ import annotations

import hashlib

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

    def __init__(self, size: int, *key: int | str) -> None:
        assert size >= 1, size
        self.size = size
        self.half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self.mask = np.uint64((1 << self.half_bits) - 1)
        self.keys = [np.uint64(derive_seed("feistel", i, *key)) for i in range(self.ROUNDS)]

    def _encrypt(self, value: np.ndarray) -> np.ndarray:
        shift = np.uint64(self.half_bits)
        left, right = value >> shift, value & self.mask
        for key in self.keys:
            mixed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(0xD6E8FEB86659FD93)
            mixed ^= mixed >> np.uint64(32)
            left, right = right, left ^ (mixed & self.mask)
        return (left << shift) | right

    def __call__(self, index: np.ndarray | int) -> np.ndarray:
        """Map positions, each in ``range(size)``, to elements (int64, same shape)."""
        value = np.atleast_1d(np.asarray(index)).astype(np.uint64)
        with np.errstate(over="ignore"):
            result = self._encrypt(value)
            outside = result >= self.size
            while outside.any():
                result[outside] = self._encrypt(result[outside])
                outside = result >= self.size
        return result.astype(np.int64).reshape(np.shape(index))
