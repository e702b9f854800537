"""Text and a WordPiece tokenizer for it, both made up."""

from __future__ import annotations

import random

from llmtrain.data import wordpiece
from llmtrain.data.tokenizer import Tokenizer

STEMS = [a + b for a in "bcdfghklmnprst" for b in "aeiou"]
ENDINGS = ["ing", "ed", "s"]
MARKS = [".", "!", "?", ",", '"', "\u201d"]


def word_tokenizer() -> Tokenizer:
    """Knows 70 short stems, three endings that continue a word, a few marks and Chinese numerals."""
    vocab = [
        *wordpiece.SPECIAL_TOKENS,
        *STEMS,
        *("##" + ending for ending in ENDINGS),
        *MARKS,
        *"一二三四五六七八九十。",
    ]
    return Tokenizer(wordpiece.from_vocab(vocab, lowercase=True), kind="file", end_token=wordpiece.SEP)


def story(seed: int, sentences: int, longest: int = 20, stems: list[str] = STEMS) -> str:
    """Sentences of 3 or more random words, every third with an ending."""
    rng = random.Random(seed)
    parts = []
    for _ in range(sentences):
        words = [
            rng.choice(stems) + (rng.choice(ENDINGS) if rng.random() < 1 / 3 else "")
            for _ in range(rng.randint(3, longest))
        ]
        parts.append(" ".join(words) + rng.choice([".", "!", "?", '."']))
    return " ".join(parts)
