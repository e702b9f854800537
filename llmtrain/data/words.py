"""Words in token ids: what the pieces of a vocabulary say, and lists of words for text without blanks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models

from llmtrain.data.metaspace import is_metaspace
from llmtrain.utils.errors import ConfigError


def continuations(inner: tokenizers.Tokenizer, vocab_size: int) -> np.ndarray:
    """Which ids are pieces that continue a word, (V,) bool.

    WordPiece marks them (`##ing`). Byte-level BPE marks the blank in front of a word instead, and so does
    SentencePiece: a piece without it continues, unless it starts with punctuation or white space.
    """
    table = np.zeros(vocab_size, bool)
    vocab = inner.get_vocab(with_added_tokens=False)
    if isinstance(inner.model, models.WordPiece):
        prefix = inner.model.continuing_subword_prefix
        table[[i for token, i in vocab.items() if token.startswith(prefix) and token != prefix]] = True
    elif isinstance(inner.decoder, decoders.ByteLevel):
        table[[i for token, i in vocab.items() if _inside_word(inner.decoder.decode([token]))]] = True
    elif isinstance(inner.decoder, decoders.Metaspace) or is_metaspace(inner):
        table[[i for token, i in vocab.items() if _inside_word(token)]] = True
    return table


def _inside_word(piece: str) -> bool:
    """Whether a piece starts with a letter or digit, or (U+FFFD) with a part of a character."""
    return piece[:1].isalnum() or piece[:1] == "\ufffd"


class Words:
    """Finds the words in token ids.

    Args:
        continues: (V,) bool, ids that continue a word.
        phrases: ids of words that the pieces do not show, such as those of Chinese; shorter than two tokens
            they say nothing.
    """

    def __init__(self, continues: np.ndarray, phrases: Iterable[np.ndarray] = ()) -> None:
        self._continues = continues
        self._phrases = {tuple(phrase.tolist()) for phrase in phrases if len(phrase) > 1}
        self._longest: dict[int, int] = {}  # phrase with such first two tokens
        for phrase in self._phrases:
            key = phrase[0] * len(continues) + phrase[1]
            self._longest[key] = max(self._longest.get(key, 0), len(phrase))
        self._keys = np.array(sorted(self._longest), np.int64)

    def starts(self, ids: np.ndarray) -> np.ndarray:
        """Which of (n,) ids start a word, (n,) bool.

        Of the phrases the longest at the leftmost place wins; a piece behind it that continues a word
        belongs to it.
        """
        starts = ~self._continues[ids]
        starts[:1] = True
        if not self._phrases or len(ids) < 2:
            return starts
        keys = ids[:-1] * len(self._continues) + ids[1:]
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        candidates = np.flatnonzero((self._keys[places] == keys) & starts[:-1])
        values: list[int] = ids.tolist()
        done = 0
        for i in candidates.tolist():
            if i < done:
                continue
            for end in range(min(i + self._longest[int(keys[i])], len(values)), i + 1, -1):
                if tuple(values[i:end]) in self._phrases:
                    starts[i + 1 : end] = False
                    done = end
                    break
        return starts


def read_word_list(path: str) -> list[str]:
    """Words of a file, one a line; empty lines do not count.

    Raises:
        ConfigError: the file cannot be read or has no word.
    """
    fix = "give a UTF-8 text file with one word a line"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the word list cannot be read: {error}", f"objective.word_list={path}", fix
        ) from error
    words = [word for line in lines if (word := line.strip())]
    if not words:
        raise ConfigError("the word list is empty", f"objective.word_list={path}", fix)
    return words
