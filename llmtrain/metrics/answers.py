"""Exact match and F1 of answers, as the official scripts of SQuAD and CMRC 2018 define them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001
"""Characters that CMRC 2018 leaves out of the comparison."""

WORD_BORDER = re.compile(
    r"""\.\.\.|--|''|``|[;@#$%&?!()\[\]{}<>"—]|,(?!\d)|\.(?=[])}>"']*\s*$)|'(?:s|m|d|ll|re|ve)?(?!\w)|n't\b"""
)
"""What stands by itself in a run of Latin letters."""


class AnswerScore(NamedTuple):
    """Of one answer, both from 0 to 1."""

    exact_match: float
    f1: float


def squad_normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without articles, words parted by one blank."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def squad_score(answer: str, references: Sequence[str], no_answer: bool = False) -> AnswerScore:
    """Scores of SQuAD v1.1 (Rajpurkar et al. 2016), or of v2 (Rajpurkar, Jia & Liang 2018).

    Args:
        answer: empty for no answer.
        references: reference answers.
        no_answer: score as in v2: references that are only articles and punctuation do not count, and
            where there is no other the right answer is none.
    """
    words = squad_normalise(answer).split()
    targets = [squad_normalise(reference).split() for reference in references]
    if no_answer:
        targets = [target for target in targets if target] or [[]]
    return AnswerScore(
        max(float(words == target) for target in targets),
        max(_word_f1(words, target, no_answer) for target in targets),
    )


def _word_f1(words: list[str], target: list[str], no_answer: bool) -> float:
    common = (Counter(words) & Counter(target)).total()
    if common == 0:
        return float(no_answer and words == target)
    return 2 * common / (len(words) + len(target))


def cmrc_score(answer: str, references: Sequence[str], no_answer: bool = False) -> AnswerScore:
    """Scores of CMRC 2018 (Cui et al. 2019).

    Exact match compares the texts in lower case without punctuation. F1 goes by the longest run of
    segments, see `cmrc_segments`, that both have.

    Args:
        answer: empty for no answer.
        references: reference answers.
        no_answer: where there are no references the right answer is none (CMRC has no such questions).
    """
    if no_answer and not references:
        return AnswerScore(float(not answer), float(not answer))
    segments = cmrc_segments(answer)
    return AnswerScore(
        float(any(_without_punctuation(answer) == _without_punctuation(text) for text in references)),
        max(_run_f1(segments, cmrc_segments(text)) for text in references),
    )


def _without_punctuation(text: str) -> str:
    return "".join(char for char in text.lower().strip() if char not in CMRC_PUNCTUATION)


def cmrc_segments(text: str) -> list[str]:
    """Chinese characters one by one, other text in words; in lower case, without CMRC's punctuation.

    The official script cuts what stands between Chinese characters with NLTK's `word_tokenize`; here its
    rules for punctuation and English contractions are followed.
    """
    spaced = re.sub(r"([\u4e00-\u9fa5])", "\n\\1\n", _without_punctuation(text))
    return [word for run in spaced.split("\n") for word in WORD_BORDER.sub(r" \g<0> ", run).split()]


def _run_f1(left: list[str], right: list[str]) -> float:
    common = longest_run(left, right)
    return 2 * common / (len(left) + len(right)) if common else 0.0


def longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest run of neighbours that stands in both sequences."""
    longest = 0
    before = [0] * (len(right) + 1)  # length of the run that ends with the last of `left` and each of `right`
    for item in left:
        here = [0]
        for place, other in enumerate(right):
            here.append(before[place] + 1 if item == other else 0)
        longest = max(longest, *here)
        before = here
    return longest
