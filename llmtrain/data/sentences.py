"""Where a second segment may start: sentence starts, and word starts where there are none for long."""

from __future__ import annotations

import re

import numpy as np

from llmtrain.data.spans import Contents
from llmtrain.data.tokenizer import Tokenizer

GAP = 32
"""Tokens between two starts of words that serve as places inside a long sentence."""

BLOCK = 1 << 20
"""Tokens that are searched at once."""

LOOK_BACK = 4
"""Tokens before a sentence that are looked at: its predecessor's last word, its mark and two closing ones."""

_CLOSING = "\"'\u201d\u2019\u00bb)\\]\u3011\u300d\u300f\u300b\u3009\uff09"
"""Marks that may stand behind the end of a sentence: of Western and Chinese quotations and brackets."""

_ENDING = ".!?\u2026\u3002\uff01\uff1f\uff0e"
"""Full stops, exclamation and question marks, the ellipsis, and their Chinese forms."""

_ABBREVIATED = re.compile("[a-z]|mr|mrs|ms|dr|st", re.IGNORECASE)
"""Before a full stop, what does not end a sentence: initials and titles."""

_ENDS_SENTENCE = re.compile(f"[{_ENDING}][{_CLOSING}]*\\s*$|\n\\s*$")
_CLOSES = re.compile(f"[{_CLOSING}]+$")


class Places:
    """Places of the joined documents where a segment may start, ascending; never inside a word.

    The start of a document is none: nothing of the document stands before it.

    Attributes:
        every: (places,) int64.
        is_sentence: (places,) bool, whether a sentence starts there; else only a word.
        of_kind: the places that are only words, and those that are sentences.
    """

    def __init__(self, contents: Contents, tokenizer: Tokenizer) -> None:
        marks = _Marks(tokenizer)
        found = [marks.places(contents, i, i + BLOCK) for i in range(0, contents.num_tokens, BLOCK)]
        self.every = np.concatenate([places for places, _ in found])
        self.is_sentence = np.concatenate([kinds for _, kinds in found])
        self.of_kind = (self.every[~self.is_sentence], self.every[self.is_sentence])


class _Marks:
    """What the tokens of a vocabulary say about sentences and words.

    Attributes:
        ends: (V,) bool, ends a sentence.
        closes: (V,) bool, quotation marks and brackets that may stand behind that.
        stops: (V,) bool, a full stop and nothing else.
        abbreviated: (V,) bool, a full stop behind it does not end a sentence.
        continues: (V,) bool, continues a word.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
        self.ends = np.array([_ENDS_SENTENCE.search(text) is not None for text in texts])
        self.closes = np.array([_CLOSES.match(text.strip()) is not None for text in texts])
        self.stops = np.array([text.strip() == "." for text in texts])
        self.abbreviated = np.array([_ABBREVIATED.fullmatch(text.strip()) is not None for text in texts])
        self.continues = tokenizer.continues_word

    def places(self, contents: Contents, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in a block [start, end) of the joined documents, and which of them are sentences."""
        end = min(end, contents.num_tokens)
        ids = contents.read(max(start - LOOK_BACK, 0), end)
        ends, closes = self.ends[ids], self.closes[ids]
        is_word = ~(self.continues[ids] | ends | closes)
        ends[1:] &= ~(self.stops[ids[1:]] & self.abbreviated[ids[:-1]])
        ended = np.zeros(len(ids) + 1, bool)  # whether a sentence ends right before a token
        ended[1:] = ends
        ended[2:] |= closes[1:] & ends[:-1]
        ended[3:] |= closes[2:] & closes[1:-1] & ends[:-2]
        is_sentence = ended[:-1] & is_word
        back = len(ids) - (end - start)
        is_sentence, is_word = is_sentence[back:], is_word[back:]
        is_border = np.zeros(end - start, bool)
        is_border[contents.borders(start, end) - start] = True
        is_sentence &= ~is_border
        is_word &= ~is_border
        chosen = is_sentence.copy()
        chosen[_fill(is_sentence, is_word, is_border)] = True
        places = np.flatnonzero(chosen)
        return places + start, is_sentence[places]


def _fill(is_sentence: np.ndarray, is_word: np.ndarray, is_border: np.ndarray) -> np.ndarray:
    """Word starts about every GAP tokens in sentences longer than twice that, and one in the middle of a
    document that is a single sentence.

    Args:
        is_sentence: (n,) bool, a sentence starts here in the block, but not a document.
        is_word: likewise.
        is_border: a document starts here.
    """
    starts = np.flatnonzero(is_sentence | is_border | (np.arange(len(is_border)) == 0))
    gaps = np.diff(starts, append=len(is_border))
    ends = starts + gaps
    numbers = np.where(gaps > 2 * GAP, gaps // GAP - 1, 0)
    steps = np.where(numbers > 0, GAP, np.maximum(gaps // 2, 1))
    single = is_border[starts] & np.append(is_border, True)[ends]
    numbers = np.where(single, np.maximum(numbers, 1), numbers)
    number = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    targets = np.repeat(starts, numbers) + (number + 1) * np.repeat(steps, numbers)
    words = np.append(np.flatnonzero(is_word), len(is_word))
    found = words[np.searchsorted(words, targets)]
    return found[found < np.repeat(ends, numbers)]
