"""Ids of text by words that were met before: what makes tokenising fast.

A text is cut into words at places where the tokenizer certainly cuts it too, and the ids of each distinct
word are asked of the tokenizer once. Both are done on whole arrays of bytes. Where a text is cut depends on
ASCII characters only, whose kinds no two versions of Unicode see differently; around all others fewer cuts
are made, so that the tokenizer itself decides there. The ids are those of the tokenizer, whatever the text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

LETTER, DIGIT, OTHER, BLANK, LINE_END, FOREIGN, ODD = range(7)
"""Kinds of bytes; `FOREIGN` are those of characters beyond ASCII, `ODD` whatever may be white space to some
regex engine and control characters."""

BLOCK = 1 << 18
"""Bytes that are worked on at once: arrays of this length stay in a core's cache."""

SLOTS = 1 << 18
"""Places of the table of short words."""

MOST = SLOTS // 2
"""Words that are kept; later ones are asked for anew whenever they occur."""

SHORT = 16
"""Bytes of a word that the table holds, as two numbers; longer ones are in a dict."""

GAP = b"\0\0"
"""Between two texts; a text that has a zero byte itself is left to the tokenizer."""

FOREIGN_SHARE = 0.2
"""Bytes beyond those of ASCII, for each character, from which on a text is left to the tokenizer: it has few
places to cut at, hence few words twice."""

MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
"""Odd numbers of random bits, to spread words over the table by multiplication."""

Encode = Callable[[list[str]], Sequence[Sequence[int]]]


def byte_kinds(digits_apart: bool, words_only: bool) -> np.ndarray:
    """Kind of each byte, (256,) uint8.

    Args:
        digits_apart: letters and digits are never in one word.
        words_only: nothing but white space parts words: all else is of one kind.
    """
    kinds = np.full(256, OTHER, np.uint8)
    kinds[:0x21] = kinds[0x7F] = ODD
    kinds[0x80:] = FOREIGN
    for first, last, kind in (("a", "z", LETTER), ("A", "Z", LETTER), ("0", "9", DIGIT)):
        kinds[ord(first) : ord(last) + 1] = kind
    if not digits_apart:
        kinds[kinds == DIGIT] = LETTER
    if words_only:
        kinds[kinds < BLANK] = LETTER
    kinds[ord(" ")], kinds[ord("\n")] = BLANK, LINE_END
    return kinds


def mark_odd_spaces(raw: np.ndarray, kinds: np.ndarray) -> None:
    """Make all bytes `ODD`, in kinds (n,), of those characters beyond ASCII that may be white space or are
    invisible: U+0080 to U+00A0, U+1680, U+180E, U+2000 to U+200F, U+2028 to U+202F, U+205F to U+206F,
    U+3000 and U+FEFF; raw (n,) is UTF-8."""
    for place in np.flatnonzero(raw == 0xC2).tolist():
        if raw[place + 1] <= 0xA0:
            kinds[place : place + 2] = ODD
    for lead, ranges in _ODD_THREE.items():
        places = np.flatnonzero(raw == lead)
        rest = raw[places + 1].astype(np.int32) << 8 | raw[places + 2]
        odd = np.zeros(len(places), bool)
        for first, last in ranges:
            odd |= (rest >= first) & (rest <= last)
        for offset in range(3):
            kinds[places[odd] + offset] = ODD


_ODD_THREE = {
    0xE1: [(0x9A80, 0x9A80), (0xA08E, 0xA08E)],
    0xE2: [(0x8080, 0x808F), (0x80A8, 0x80AF), (0x819F, 0x81AF)],
    0xE3: [(0x8080, 0x8080)],
    0xEF: [(0xBBBF, 0xBBBF)],
}
"""Those of three bytes: the first one, and from where to where the others, as one number, go."""


def borders(raw: np.ndarray, kinds: np.ndarray, words_only: bool) -> np.ndarray:
    """Before which bytes a word certainly starts, (n,) bool.

    The rules hold for GPT-2's pattern and for BERT's splitting; that of `words_only` for SentencePiece's too.

    - White space ends a word. It starts one together with what follows it, if that is a blank; a line end
      before text is a word of its own. Of several the last goes with what follows.
    - Letters, digits and other characters are words of their own (BERT's: letters and digits together),
      but an apostrophe may take letters (`'s`) unless it follows a blank or another such character.

    Args:
        raw: (n,) uint8, UTF-8.
        kinds: (n,) of the bytes.
        words_only: a word starts only where one blank or line end stands between two others.
    """
    before, now, after = kinds[:-2], kinds[1:-1], kinds[2:]
    space = (now == BLANK) | (now == LINE_END)
    starts = np.zeros(len(raw), bool)
    text_before = (before < BLANK) | (before == FOREIGN)
    if words_only:
        starts[1:-1] = space & text_before & ((after < BLANK) | (after == FOREIGN))
        return starts
    space_before = (before == BLANK) | (before == LINE_END)
    starts[1:-1] = space & (text_before | (space_before & (after < BLANK)))
    inside = (before != now) & (before < BLANK) & (now < BLANK)
    apostrophes = np.flatnonzero(inside & (raw[:-2] == ord("'")) & (now != OTHER)) + 1
    starts[1:-1] |= inside
    earlier = kinds[np.maximum(apostrophes - 2, 0)]
    starts[apostrophes[(earlier != OTHER) & (earlier != BLANK) | (apostrophes < 2)]] = False
    starts[1:-1] |= (before == LINE_END) & starts[:-2] & (now < BLANK)
    return starts


class WordTable:
    """The ids of words, and of texts by them.

    Args:
        encode: the ids of each of some texts, by the tokenizer.
        dtype: of ids.
        digits_apart, words_only: see `byte_kinds`.
    """

    def __init__(self, encode: Encode, dtype: np.dtype, *, digits_apart: bool, words_only: bool) -> None:
        self._encode = encode
        self._words_only = words_only
        self._lock = threading.Lock()
        self._kinds = byte_kinds(digits_apart, words_only)
        self._numbers: dict[bytes, int] = {}
        self._low, self._high = np.zeros(SLOTS, np.uint64), np.zeros(SLOTS, np.uint64)
        self._slots = np.full(SLOTS, -1, np.int32)
        self._ids = np.empty(0, dtype)
        self._starts, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)

    @staticmethod
    def suits(text: str, size: int) -> bool:
        """Whether a text, of `size` bytes of UTF-8, is for the table."""
        return size <= (1 + FOREIGN_SHARE) * len(text) and "\0" not in text

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, given as UTF-8 without zero bytes, (n,) each; one thread at a time."""
        result: list[np.ndarray] = []
        block: list[bytes] = []
        size = 0
        with self._lock:
            for text in texts:
                block.append(text)
                size += len(text)
                if size >= BLOCK:
                    result += self._block(block)
                    block, size = [], 0
            return result + (self._block(block) if block else [])

    def _block(self, texts: list[bytes]) -> list[np.ndarray]:
        joined = GAP + GAP.join(texts) + GAP + bytes(SHORT)  # so that words can be read as two numbers
        raw = np.frombuffer(joined, np.uint8)[: len(joined) - SHORT]
        lengths = np.array([len(text) for text in texts])
        first = np.cumsum(lengths + len(GAP)) - lengths
        kinds = self._kinds[raw]
        if not joined.isascii():
            mark_odd_spaces(raw, kinds)
        cuts = borders(raw, kinds, self._words_only)
        cuts[0] = cuts[first] = cuts[first + lengths] = True
        places = np.flatnonzero(cuts)
        begins = np.searchsorted(places, first)  # of each text, its first word ...
        ends = np.searchsorted(places, first + lengths)  # ... and the gap behind it, which is no word
        is_word = np.ones(len(places), bool)
        is_word[0] = is_word[ends] = False
        sizes = np.diff(places, append=len(raw))
        numbers, added = self._look_up(joined, places[is_word], sizes[is_word])
        gaps = np.arange(1, len(texts) + 1)  # so many have been left out before the words of each text
        return self._texts(numbers, added, begins - gaps, ends - gaps)

    def _texts(
        self, numbers: np.ndarray, added: Sequence[Sequence[int]], begins: np.ndarray, ends: np.ndarray
    ) -> list[np.ndarray]:
        """Ids of texts: words [begin, end) of the words with these numbers."""
        ids, starts, counts = self._joined(added)
        counts = counts[numbers]
        bounds = np.concatenate([[0], np.cumsum(counts)])  # of the ids of words
        flat = ids[np.repeat(starts[numbers] - bounds[:-1], counts) + np.arange(bounds[-1])]
        return [flat[a:b] for a, b in zip(bounds[begins], bounds[ends], strict=True)]

    def _joined(self, added: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, starts and counts with those of words that were not kept behind those that are."""
        if not added:
            return self._ids, self._starts, self._counts
        counts = np.array([len(ids) for ids in added], np.int64)
        starts = np.cumsum(counts) - counts + len(self._ids)
        ids = np.concatenate([self._ids, *(np.array(one, self._ids.dtype) for one in added)])
        return ids, np.concatenate([self._starts, starts]), np.concatenate([self._counts, counts])

    def _look_up(
        self, joined: bytes, places: np.ndarray, sizes: np.ndarray
    ) -> tuple[np.ndarray, Sequence[Sequence[int]]]:
        """Number of each word, (n,), and the ids of those words that are not kept."""
        windows: np.ndarray = np.ndarray(len(joined) - 7, "<u8", joined, strides=(1,))
        low = windows[places] & _MASKS[np.minimum(sizes, 8)]
        high = windows[places + 8] & _MASKS[np.clip(sizes - 8, 0, 8)]
        numbers = self._find(low, high)
        numbers[sizes > SHORT] = -1
        unknown = np.flatnonzero(numbers < 0)
        if not len(unknown):
            return numbers, []
        new: dict[bytes, int] = {}
        known, found = self._numbers, []
        for start, size in zip(places[unknown].tolist(), sizes[unknown].tolist(), strict=True):
            word = joined[start : start + size]
            number = known.get(word)
            found.append(new.setdefault(word, len(known) + len(new)) if number is None else number)
        numbers[unknown] = found
        encoded = self._encode([word.decode() for word in new]) if new else []
        if len(known) + len(new) > MOST:
            return numbers, encoded
        self._ids, self._starts, self._counts = self._joined(encoded)
        self._numbers.update(new)
        fresh = np.array([number >= len(known) - len(new) for number in found]) & (sizes[unknown] <= SHORT)
        self._keep(low[unknown][fresh], high[unknown][fresh], numbers[unknown][fresh])
        return numbers, []

    def _slot(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        mixed = (low ^ (high * MIX[1])) * MIX[0]
        return (mixed >> np.uint64(64 - SLOTS.bit_length() + 1)).astype(np.int64)

    def _find(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Numbers of words in the table, -1 where there is none."""
        slots = self._slot(low, high)
        numbers = self._slots[slots]
        other = np.flatnonzero((self._low[slots] != low) | (self._high[slots] != high))
        while len(other):
            numbers[other] = -1
            other = other[self._slots[slots[other]] >= 0]
            slots[other] = (slots[other] + 1) % SLOTS
            held = self._slots[slots[other]]
            same = (self._low[slots[other]] == low[other]) & (self._high[slots[other]] == high[other])
            numbers[other] = np.where(same, held, -1)
            other = other[~same]
        return numbers

    def _keep(self, low: np.ndarray, high: np.ndarray, numbers: np.ndarray) -> None:
        """Put words into the table; each may be there several times."""
        _, once = np.unique(numbers, return_index=True)
        low, high, numbers = low[once], high[once], numbers[once]
        slots = self._slot(low, high)
        while len(slots):
            free = self._slots[slots] < 0
            _, winners = np.unique(slots, return_index=True)
            won = np.zeros(len(slots), bool)
            won[winners] = True
            won &= free
            self._low[slots[won]], self._high[slots[won]] = low[won], high[won]
            self._slots[slots[won]] = numbers[won]
            low, high, numbers = low[~won], high[~won], numbers[~won]
            slots = (slots[~won] + 1) % SLOTS


_MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
"""Keep so many bytes of a number."""
