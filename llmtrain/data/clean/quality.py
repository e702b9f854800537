"""Rules of quality and repetition (Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights
from Training Gopher", section A.1.1 and table A1).

Words are what white space parts. For languages without it the limits that count words have to be moved or
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llmtrain.schema.clean import QualityConfig, RepetitionConfig

BULLETS = ("•", "‣", "⁃", "●", "◦", "▪", "-", "*", "–", "·")  # noqa: RUF001
ELLIPSES = ("...", "…")
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))

_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


class Broken(NamedTuple):
    """A rule that a document breaks.

    Attributes:
        rule: name of the setting.
        value: of the document.
        limit: that it should have kept.
    """

    rule: str
    value: float
    limit: float


def check_quality(text: str, rules: QualityConfig) -> Broken | None:
    """The first rule about words and lines that a text breaks."""
    return _first(_quality(text, rules))


def check_repetition(text: str, rules: RepetitionConfig) -> Broken | None:
    """The first rule about repetition that a text breaks."""
    return _first(_repetition(text, rules))


Measure = tuple[str, float, float | None, bool]
"""Rule, value, limit, and whether the limit is the smallest value."""


def _first(measures: Iterator[Measure]) -> Broken | None:
    for rule, value, limit, is_smallest in measures:
        if limit is not None and (value < limit if is_smallest else value > limit):
            return Broken(rule, value, limit)
    return None


def _quality(text: str, rules: QualityConfig) -> Iterator[Measure]:
    words = text.split()
    num = max(len(words), 1)
    yield "min_words", len(words), rules.min_words, True
    yield "max_words", len(words), rules.max_words, False
    length = sum(map(len, words)) / num
    yield "min_word_length", length, rules.min_word_length, True
    yield "max_word_length", length, rules.max_word_length, False
    ellipses = sum(text.count(mark) for mark in ELLIPSES)
    yield "max_symbols_per_word", max(text.count("#"), ellipses) / num, rules.max_symbols_per_word, False
    lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
    bullets = sum(line.startswith(BULLETS) for line in lines) / max(len(lines), 1)
    yield "max_bullet_lines", bullets, rules.max_bullet_lines, False
    ends = sum(line.endswith(ELLIPSES) for line in lines) / max(len(lines), 1)
    yield "max_ellipsis_lines", ends, rules.max_ellipsis_lines, False
    if rules.min_alphabetic_words is not None:
        alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / num
        yield "min_alphabetic_words", alphabetic, rules.min_alphabetic_words, True
    if rules.min_stop_words is not None:
        stops = sum(word.strip(".,;:!?'\"()").lower() in STOP_WORDS for word in words)
        yield "min_stop_words", stops, rules.min_stop_words, True


def _repetition(text: str, rules: RepetitionConfig) -> Iterator[Measure]:
    size = max(len(text), 1)
    paragraphs = _PARAGRAPHS.split(text.strip())
    lines = _LINES.split(text.strip())
    for name, parts in (("paragraphs", paragraphs), ("lines", lines)):
        number, characters = _duplicates(parts)
        share = f"max_duplicate_{name}"
        yield share, number / max(len(parts), 1), getattr(rules, share), False
        of_characters = f"max_duplicate_{name.removesuffix('s')}_characters"
        yield of_characters, characters / size, getattr(rules, of_characters), False
    words = text.split()
    lengths = np.array([len(word) for word in words], np.int64)
    grams = _ngrams(words, 4 + len(rules.max_duplicate_ngrams))
    for n, ids in enumerate(grams, 2):
        if n <= 1 + len(rules.max_top_ngrams):
            yield f"max_top_ngrams {n}", _top(ids, lengths, n) / size, rules.max_top_ngrams[n - 2], False
        elif n >= 5:
            limit = rules.max_duplicate_ngrams[n - 5]
            yield f"max_duplicate_ngrams {n}", _repeated(ids, lengths, n) / size, limit, False


def _duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts stood before, and their characters."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        else:
            seen.add(part)
    return number, characters


def _ngrams(words: Sequence[str], longest: int) -> Iterator[np.ndarray]:
    """Numbers of the runs of 2, 3, ... words, (words - n + 1,) each; equal runs have equal numbers."""
    known: dict[str, int] = {}
    ids = word_ids = np.array([known.setdefault(word, len(known)) for word in words], np.int64)
    for n in range(2, longest + 1):
        if len(words) < n:
            return
        pairs = ids[: len(words) - n + 1] * len(known) + word_ids[n - 1 :]
        ids = np.unique(pairs, return_inverse=True)[1]
        yield ids


def _top(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in the most frequent run of n words, all its places together; 0 if none is there twice."""
    counts = np.bincount(ids)
    most = int(counts.max())
    if most < 2:
        return 0
    place = int(np.flatnonzero(counts[ids] == most)[0])
    return (int(lengths[place : place + n].sum()) + n - 1) * most


def _repeated(ids: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters in runs of n words that stood before; where such runs overlap none is counted twice."""
    repeats = np.bincount(ids)[ids] > 1
    if not repeats.any():
        return 0
    ends = np.cumsum(lengths)
    seen: set[int] = set()
    total, free = 0, 0
    for place in np.flatnonzero(repeats).tolist():
        if place < free:
            continue
        run = int(ids[place])
        if run in seen:
            total += int(ends[place + n - 1] - (ends[place - 1] if place else 0))
            free = place + n
        else:
            seen.add(run)
    return total
