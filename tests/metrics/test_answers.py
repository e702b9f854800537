"""Scores of answers against cases that were worked out with the definitions of the official scripts."""

from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.metrics.answers import (
    cmrc_score,
    cmrc_segments,
    longest_run,
    squad_normalise,
    squad_score,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("an A-Team of the Theatre", "ateam of theatre"),  # punctuation first, then articles as whole words
        ("U.S.A.", "usa"),
        ("a the an", ""),
        ("don't", "dont"),
        ("caf\u00e9\u00a0noir", "caf\u00e9 noir"),  # any white space parts words
        ("24\u201310", "24\u201310"),  # a dash that is not ASCII stays
        ("\u00abThe\u00bb end", "\u00ab \u00bb end"),  # a word border is beside a quotation mark too
    ],
)
def test_normalisation_of_squad(text: str, expected: str):
    assert squad_normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the Broncos", ["Broncos."], (1.0, 1.0)),
        ("Denver Broncos", ["Broncos"], (0.0, 2 / 3)),
        ("Denver Broncos", ["Carolina Panthers"], (0.0, 0.0)),
        ("Denver Broncos", ["Carolina Panthers", "Denver", "the Denver Broncos"], (1.0, 1.0)),
        ("red red blue", ["red blue blue"], (0.0, 2 / 3)),  # words count as often as they stand: 2 common
        ("", ["Denver"], (0.0, 0.0)),
        ("the", ["a"], (1.0, 0.0)),  # v1.1: nothing in common, though nothing is left to differ
    ],
)
def test_squad_v1(answer: str, references: list[str], expected: tuple[float, float]):
    assert squad_score(answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("", [], (1.0, 1.0)),
        ("Denver", [], (0.0, 0.0)),
        ("", ["Denver"], (0.0, 0.0)),
        ("the", [], (1.0, 1.0)),  # nothing is left of it
        ("", ["the"], (1.0, 1.0)),  # nor of the only reference
        ("", ["the", "Denver"], (0.0, 0.0)),  # where another one is left, that one counts
        ("Denver Broncos", ["the", "Broncos"], (0.0, 2 / 3)),
    ],
)
def test_squad_v2(answer: str, references: list[str], expected: tuple[float, float]):
    assert squad_score(answer, references, no_answer=True) == pytest.approx(expected)


def official_f1(answer: str, reference: str) -> float:
    """As the paper's script computes it: precision and recall of a bag of words."""

    def words(text: str) -> list[str]:
        kept = "".join(char for char in text.lower() if char not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    said, true = words(answer), words(reference)
    same = sum((Counter(said) & Counter(true)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(said), same / len(true)
    return 2 * precision * recall / (precision + recall)


phrases = st.lists(st.sampled_from(["the", "cat", "Cat.", "a", "dog", "42%", "-"]), max_size=6).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(phrases, st.lists(phrases, min_size=1, max_size=3))
def test_squad_is_the_best_over_the_references(answer: str, references: list[str]):
    score = squad_score(answer, references)
    assert score.f1 == pytest.approx(max(official_f1(answer, reference) for reference in references))
    assert score.exact_match <= score.f1 or not squad_normalise(answer)
    assert squad_score(answer, [answer], no_answer=True) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("光荣和ω-force开发", ["光", "荣", "和", "ωforce", "开", "发"]),
        ("《战国无双3》", ["战", "国", "无", "双", "3"]),
        ("2008年8月8日", ["2008", "年", "8", "月", "8", "日"]),
        ("于New York出生", ["于", "new", "york", "出", "生"]),
        ("约1,234.5米，", ["约", "1,234.5", "米"]),  # noqa: RUF001
        ("(Nicolas Poussin)", ["(", "nicolas", "poussin", ")"]),
        ("he isn't Smith's.", ["he", "is", "n't", "smith", "'s", "."]),
        ("R. d. d", ["r.", "d.", "d"]),
        ("是…", ["是", "…"]),  # one mark; the script's list has only the pair of them, which no character is
        ("", []),
    ],
)
def test_segments_of_cmrc(text: str, expected: list[str]):
    assert cmrc_segments(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("光荣", ["光荣。"], (1.0, 1.0)),
        ("《光荣》", ["光荣"], (1.0, 1.0)),
        ("光荣和", ["光荣和ω-force"], (0.0, 2 * 3 / (3 + 4))),
        ("光荣x和", ["光荣和"], (0.0, 2 * 2 / (4 + 3))),  # the longest run without a gap, not 3
        ("北京", ["上海", "北京市"], (0.0, 2 * 2 / (2 + 3))),
        ("北京", ["上海"], (0.0, 0.0)),
        ("Tokyo", ["tokyo"], (1.0, 1.0)),
        ("", ["上海"], (0.0, 0.0)),
    ],
)
def test_cmrc(answer: str, references: list[str], expected: tuple[float, float]):
    assert cmrc_score(answer, references) == pytest.approx(expected)


def test_cmrc_without_answer():
    assert cmrc_score("", [], no_answer=True) == (1.0, 1.0)
    assert cmrc_score("北京", [], no_answer=True) == (0.0, 0.0)
    assert cmrc_score("北京", ["北京"], no_answer=True) == (1.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_longest_run(left: str, right: str):
    runs = {left[i:k] for i in range(len(left)) for k in range(i + 1, len(left) + 1)}
    assert longest_run(left, right) == max((len(run) for run in runs if run in right), default=0)
