"""Tokenizers in SentencePiece's way: a mark for each blank, and bytes for characters without a token.

Words are parted before each blank and around line ends, and nothing is put in front of a text, so that
(unless it holds the mark itself) every text comes back exactly.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from llmtrain.data import unigram
from llmtrain.data.families import FAMILIES, add_tokens
from llmtrain.schema.tokenizer import BPETokenizer, UnigramTokenizer

BLANK = "\u2581"
"""Stands for a blank."""

BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens of the bytes of UTF-8."""

CUT = "\0"
"""Stands for characters that get no token while the others are learned."""

NEVER = -1e4
"""Score of tokens that are not chosen because of the text: below that of any sum of pieces."""

_WORDS = re.compile(r"\n+| ?[^ \n]+| ")
"""The words of `words()`, as text."""


def words() -> pre_tokenizers.PreTokenizer:
    """Parts a text into words, each with the blank in front of it, and runs of line ends."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n+"), "isolated"),
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="never", split=True),
        ]
    )


def _dress(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    inner.pre_tokenizer = words()
    inner.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return inner


def train_unigram(texts: Iterable[str], config: UnigramTokenizer) -> tokenizers.Tokenizer:
    """Learn the pieces and their scores; the same text gives the same ones.

    Half of the vocabulary at most is single characters, the rest of them become bytes. Special tokens get
    the ids behind the pieces: in the vocabulary of a Unigram model the same characters in a text would
    become them.
    """
    family = FAMILIES[config.family]
    special = [*family.tokens, *config.special_tokens]
    unknown = family.unknown or "<unk>"
    outside = [token for token in special if token != unknown]
    room = config.vocab_size - len(outside) - len(config.added_tokens) - len(BYTES)
    learned = unigram.learn(_words(texts, room // 2), room - 1)
    scores = {piece: score for piece, score in learned.items() if piece not in BYTES}
    vocab = [(unknown, NEVER), *((byte, NEVER) for byte in BYTES)]
    vocab += sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    inner = _dress(tokenizers.Tokenizer(models.Unigram(vocab, 0, True)))
    add_tokens(inner, special, config.added_tokens)
    family.frame(inner)
    return inner


def _words(texts: Iterable[str], limit: int) -> Counter[str]:
    """How often each word occurs, parted as `words()` does it; characters beyond the most frequent ones are
    left out, and part a word."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORDS.findall(text))
    characters: Counter[str] = Counter()
    for word, number in counts.items():
        for character in word:
            characters[character] += number
    order = sorted(characters, key=lambda character: (-characters[character], character))
    rare = dict.fromkeys(map(ord, order[max(1, limit) :]), CUT)
    found: Counter[str] = Counter()
    for word, number in counts.items():
        for part in word.translate(rare).split(CUT) if rare else [word]:
            if part:
                found[part.replace(" ", BLANK)] += number
    return found


def train_bpe(texts: Iterable[str], config: BPETokenizer) -> tokenizers.Tokenizer:
    """Learn merges of characters; half of the vocabulary at most is single characters, the rest of them
    become bytes."""
    family = FAMILIES[config.family]
    special = [*family.tokens, *config.special_tokens]
    room = config.vocab_size - len(special) - len(config.added_tokens) - len(BYTES)
    inner = _dress(tokenizers.Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=config.min_frequency,
        limit_alphabet=max(1, room // 2),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    learned = json.loads(inner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    tokens = [*special, *BYTES, *(piece for piece in pieces if piece not in special and piece not in BYTES)]
    merges = [(first, second) for first, second in learned["merges"]]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        unk_token=family.unknown,
        byte_fallback=True,
    )
    inner = _dress(tokenizers.Tokenizer(model))
    add_tokens(inner, special, config.added_tokens)
    family.frame(inner)
    return inner


def is_metaspace(inner: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer parts text and joins tokens as those made here do."""
    made = _dress(tokenizers.Tokenizer(models.BPE()))
    given = [
        json.loads(part.__getstate__()) if part else None for part in (inner.pre_tokenizer, inner.decoder)
    ]
    ours = [json.loads(part.__getstate__()) for part in (made.pre_tokenizer, made.decoder)]
    return inner.normalizer is None and given == ours


def token_bytes(token: str) -> int:
    """Bytes of text behind a token of such a tokenizer."""
    return 1 if token in BYTES else len(token.replace(BLANK, " ").encode())
