"""Learning the pieces of a Unigram model (Kudo 2018, "Subword Regularization", section 3.2).

Start from all frequent parts of words; cut the words in the likeliest way, count the pieces, and remove those
whose loss hurts least; again, until as many are left as are wanted. Words are cut by the tokenizers library
and counted in whole numbers (hard EM), so that the same words always give the same pieces: the trainer of the
library adds numbers in an order of chance, and ends with longer texts (2.86 bytes a token where this gives
3.54, WikiText-2 with 4,000 tokens).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import tokenizers
from tokenizers import models

LONGEST = 16
"""Characters of a piece at most."""

SEEDS = 6
"""Pieces to start from, for each one that is wanted."""

SHRINK = 0.75
"""Share of the pieces that a round leaves."""

ROUNDS = 2
"""Times that words are cut and pieces counted before some are removed."""

RARE = 1e-4
"""Count that stands for 0."""

DIGITS = 6
"""Digits of scores that are kept; the last bits of logarithms differ between machines."""


def learn(words: Mapping[str, int], size: int) -> dict[str, float]:
    """Pieces and their scores, logarithms of probabilities; every character is a piece.

    Args:
        words: how often each word occurs.
        size: pieces that are wanted; there are fewer where the words have no more.
    """
    counts = _seeds(words, max(SEEDS * size, 1000))
    while True:
        for _ in range(ROUNDS):
            counts = _count(words, _scores(counts))
        if len(counts) <= size:
            return _scores(counts)
        counts = _prune(counts, max(size, int(SHRINK * len(counts))))


def _seeds(words: Mapping[str, int], limit: int) -> dict[str, float]:
    """All characters, and the parts of words that cover most characters, each with its count."""
    parts: Counter[str] = Counter()
    for word, number in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST, len(word)) + 1):
                parts[word[start:end]] += number
    single = {part: float(count) for part, count in parts.items() if len(part) == 1}
    longer = [part for part, count in parts.items() if len(part) > 1 and count > 1]
    longer.sort(key=lambda part: (-parts[part] * len(part), part))
    return single | {part: float(parts[part]) for part in longer[: max(0, limit - len(single))]}


def _scores(counts: Mapping[str, float]) -> dict[str, float]:
    total = math.log(sum(counts.values()))
    return {piece: round(math.log(count or RARE) - total, DIGITS) for piece, count in counts.items()}


def _count(words: Mapping[str, int], scores: Mapping[str, float]) -> dict[str, float]:
    """How often each piece is used when every word is cut in the likeliest way."""
    vocab = list(scores.items())
    inner = tokenizers.Tokenizer(models.Unigram([("", -1e9), *vocab], 0))
    counts = [0] * (len(vocab) + 1)
    for number, found in zip(words.values(), inner.encode_batch_fast(list(words)), strict=True):
        for i in found.ids:
            counts[i] += number
    return {piece: float(counts[i]) for i, (piece, _) in enumerate(vocab, 1)}


def _prune(counts: Mapping[str, float], keep: int) -> dict[str, float]:
    """Remove the pieces without which the words are least unlikelier: where they stood, the likeliest cut
    into others stands then. Single characters stay."""
    scores = _scores(counts)
    losses = {
        piece: count * (scores[piece] - _without(piece, scores))
        for piece, count in counts.items()
        if len(piece) > 1
    }
    order = sorted(losses, key=lambda piece: (-losses[piece], piece))
    kept = set(order[: max(0, keep - (len(counts) - len(losses)))])
    return {piece: count for piece, count in counts.items() if len(piece) == 1 or piece in kept}


def _without(piece: str, scores: Mapping[str, float]) -> float:
    """Score of the likeliest cut of a piece into other ones."""
    best = [0.0, *([-math.inf] * len(piece))]
    for end in range(1, len(piece) + 1):
        for start in range(end):
            part = scores.get(piece[start:end]) if end - start < len(piece) else None
            if part is not None:
                best[end] = max(best[end], best[start] + part)
    return best[-1]
