"""Long documents in pieces: for parallel tokenising and bounded memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

PIECE = 1 << 13
"""Characters of a piece, at least; it ends at the next place where a cut changes nothing. Small pieces
are tokenised faster than big ones (6 to 8 MB/s with 4k to 16k characters, 6 with 128k, 2 cores)."""

Border = Callable[[str, int], int | None]
"""First place from an index on where a text may be cut, with at least one character behind it."""

_SPACE = r"\s\x00-\x20\x7f-\xa0\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
_WORD_BORDER = re.compile(f"(?<=[^{_SPACE}])[\n ](?=[^{_SPACE}])")


def word_border(text: str, start: int) -> int | None:
    """A single line end or blank between two characters that no regex engine takes for white space.

    GPT-2's pattern always starts a new word there (a blank goes with the word behind it), and the word
    before ends there whatever follows, so that cutting before it changes no word.
    """
    found = _WORD_BORDER.search(text, start)
    return found.start() if found else None


def any_border(text: str, start: int) -> int | None:
    """Any place; for tokenizers that look at one character at a time."""
    return start if start < len(text) else None


def cut(parts: Iterable[str], border: Border) -> Iterator[str]:
    """Cut one document, given in parts of any size, into pieces of about `PIECE` characters.

    Yields:
        at least one piece; joined they are the document. Only the last may be empty.
    """
    rest, searched = "", PIECE
    for part in parts:
        rest += part
        start = 0
        while (place := border(rest, max(start + PIECE, searched))) is not None:
            yield rest[start:place]
            start, searched = place, 0
        searched = max(PIECE, len(rest) - start - 1)
        rest = rest[start:]
    yield rest
