"""BERT's WordPiece: from a vocabulary, and learned from text (Wu et al. 2016; Devlin et al. 2019)."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmtrain.data.tokenizer_settings import SETTINGS, read_settings
from llmtrain.utils.errors import DataError

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens, in the order in which a vocabulary of ours starts with them."""

CONTINUES = "##"
"""In front of a piece that continues a word."""


def from_vocab(
    tokens: Sequence[str],
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer with a given vocabulary.

    Text is cleaned of control characters, Chinese characters and punctuation become words of their own, and
    each word is cut into the longest pieces that the vocabulary has, from the left.

    Args:
        tokens: the token of each id.
        lowercase: lower all letters.
        strip_accents: drop the accents of letters. Default: as `lowercase`.
        chinese_characters: make each Chinese character a word of its own.

    Raises:
        DataError: a special token is missing.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    if missing := [token for token in SPECIAL_TOKENS if token not in vocab]:
        raise DataError(
            f"the WordPiece vocabulary has no {', '.join(missing)}",
            "tokenizer",
            "give a vocabulary with one token a line and BERT's special tokens among them",
        )
    inner = tokenizers.Tokenizer(
        models.WordPiece(vocab, unk_token=UNKNOWN, continuing_subword_prefix=CONTINUES)
    )
    inner.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=chinese_characters,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix=CONTINUES)
    inner.post_processor = processors.BertProcessing((SEP, vocab[SEP]), (CLS, vocab[CLS]))
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return inner


def train(
    texts: Iterable[str], *, vocab_size: int, lowercase: bool, min_frequency: int
) -> tokenizers.Tokenizer:
    """BERT's tokenizer with a vocabulary learned from text; the same text gives the same one.

    The library numbers the pieces of one character as it comes upon them, which is by chance, and breaks
    ties by these numbers. Therefore they are counted and numbered before; the text is held for that as
    UTF-8.

    Args:
        texts: text in pieces.
        vocab_size: tokens at most, unless the text is too short for so many.
        lowercase: lower all letters and drop their accents.
        min_frequency: how often a piece occurs at least. Printable ASCII characters are always pieces.
    """
    empty = from_vocab(SPECIAL_TOKENS, lowercase)
    held: list[bytes] = []
    seen = np.zeros(sys.maxunicode + 1, np.int64)
    for text in texts:
        held.append(text.encode(errors="replace"))
        found = np.bincount(np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32))
        seen[: len(found)] += found
    alphabet = _alphabet(seen, empty, vocab_size // 2, min_frequency)
    single = [piece for piece in alphabet if not piece.startswith(CONTINUES)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        initial_alphabet=single,
        limit_alphabet=len(single),
        show_progress=False,
    )
    empty.train_from_iterator((text.decode() for text in held), trainer)
    vocab = empty.get_vocab()
    return from_vocab(sorted(vocab, key=vocab.__getitem__), lowercase)


def _alphabet(seen: np.ndarray, inner: tokenizers.Tokenizer, limit: int, min_frequency: int) -> list[str]:
    """Pieces of one character, at most `limit`: the most frequent characters, alone and inside a word.

    Args:
        seen: how often each code point occurs in the text.
        inner: whose characters these are.
        limit: pieces at most.
        min_frequency: how often a character occurs at least.
    """
    seen[0x21:0x7F] += min_frequency
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(seen).tolist():
        for normal in inner.normalizer.normalize_str(chr(code)).replace(" ", ""):
            counts[normal] += int(seen[code])
    pieces: list[str] = []
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        word = inner.normalizer.normalize_str(character * 2)
        inside = len(inner.pre_tokenizer.pre_tokenize_str(word)) == 1
        new = [character, CONTINUES + character] if inside else [character]
        if counts[character] < min_frequency or len(pieces) + len(new) > limit:
            break
        pieces += new
    return sorted(pieces, key=lambda piece: (len(piece), piece))


def read_vocab(text: str) -> list[str]:
    """Tokens of a `vocab.txt`, one a line; only the line end parts them, whatever else they hold."""
    return text.removesuffix("\n").split("\n")


def settings(vocab: Path, lowercase: bool) -> dict[str, Any]:
    """How the words of a `vocab.txt` are made: what `tokenizer_config.json` beside it says.

    Args:
        vocab: the file.
        lowercase: False keeps capital letters whatever the other file says.

    Returns:
        arguments of `from_vocab`.

    Raises:
        DataError: the other file is no JSON object.
    """
    told = read_settings(vocab.with_name(SETTINGS))
    return {
        "lowercase": lowercase and bool(told.get("do_lower_case", True)),
        "strip_accents": told.get("strip_accents"),
        "chinese_characters": bool(told.get("tokenize_chinese_chars", True)),
    }
