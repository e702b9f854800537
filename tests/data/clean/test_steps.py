"""Steps of cleaning, each against examples whose answer is known."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.clean.characters import normalise, remove_control_characters
from llmtrain.data.clean.duplicates import ExactDuplicates, NearDuplicates, signature, text_digest
from llmtrain.data.clean.personal import is_card_number, is_public_address, mask
from llmtrain.data.clean.quality import check_quality, check_repetition
from llmtrain.data.clean.steps import Cleaner
from llmtrain.schema.clean import (
    CleanConfig,
    NearDuplicatesConfig,
    Personal,
    QualityConfig,
    RepetitionConfig,
    UnicodeForm,
)

EVERY = list(Personal)


@given(st.text())
def test_normal_forms_are_those_of_unicode(text: str) -> None:
    for form in (UnicodeForm.NFC, UnicodeForm.NFKC):
        assert normalise(text, form) == unicodedata.normalize(form.value, text)
    assert normalise(text, UnicodeForm.none) == text


@given(st.text())
def test_control_characters_go_and_nothing_else(text: str) -> None:
    cleaned, number = remove_control_characters(text)
    assert not [one for one in cleaned if unicodedata.category(one) == "Cc" and one not in "\t\n"]
    kept = [one for one in text if unicodedata.category(one) not in ("Cc", "Cn", "Cf", "Zl", "Zp")]
    assert [one for one in cleaned if unicodedata.category(one) not in ("Cc", "Cn", "Cf")] == kept
    assert remove_control_characters(cleaned) == (cleaned, 0)
    assert (number == 0) == (cleaned == text)


def test_joiners_and_tabs_stay() -> None:
    assert remove_control_characters("a\tb\r\x0cc\x00\ufeff \u200d\U0001f468 \ufffe") == (
        "a\tb\n\nc \u200d\U0001f468 ",
        5,
    )


WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "kilo", "lima"]
GOOD = " ".join(f"{word}{i}" for i in range(8) for word in WORDS)


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("one two", "min_words", 2),
        ("word " * 100_001, "max_words", 100_001),
        ("ab " * 60, "min_word_length", 2.0),
        ("incomprehensible " * 60, "max_word_length", 16.0),
        (GOOD + " #" * 12, "max_symbols_per_word", 12 / 100),
        (GOOD + " so..." * 8 + " so…" * 8 + " end", "max_symbols_per_word", 16 / 105),
        ("\n".join(f"- {word} {GOOD[:20]}" for word in WORDS), "max_bullet_lines", 1.0),
        (GOOD + "\nwell...\nnext line", "max_ellipsis_lines", 1 / 3),
        (GOOD[:-100] + " 12345" * 40, "min_alphabetic_words", None),
    ],
)
def test_quality(text: str, rule: str, value: float | None) -> None:
    assert check_quality(GOOD, QualityConfig()) is None
    broken = check_quality(text, QualityConfig())
    assert broken is not None
    assert broken.rule == rule
    assert value is None or broken.value == pytest.approx(value)
    assert check_quality(text, QualityConfig(**{rule: None})) is None


def test_stop_words_are_asked_for_by_option_only() -> None:
    assert check_quality(GOOD, QualityConfig(min_stop_words=2)) is not None
    assert check_quality(GOOD + " The end. And that.", QualityConfig(min_stop_words=2)) is None


def brute_force(text: str, n: int) -> int:
    """Characters in repeated runs of n words, word by word, as `datatrove.find_all_duplicate` counts them."""
    words, seen, total, place = text.split(), set(), 0, 0
    while place <= len(words) - n:
        run = tuple(words[place : place + n])
        if run in seen:
            total += sum(map(len, run))
            place += n
        else:
            seen.add(run)
            place += 1
    return total


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d\n", "e\n\n"]), max_size=80), st.integers(5, 10))
@settings(max_examples=150)
def test_repeated_runs(words: list[str], n: int) -> None:
    text = " ".join(words)
    limits = [1.0] * 6
    limits[n - 5] = 0.0
    off = dict.fromkeys(
        [
            "max_duplicate_lines",
            "max_duplicate_paragraphs",
            "max_duplicate_line_characters",
            "max_duplicate_paragraph_characters",
        ]
    )
    rules = RepetitionConfig(max_top_ngrams=[], max_duplicate_ngrams=limits, **off)
    broken = check_repetition(text, rules)
    expected = brute_force(text, n)
    assert (broken is not None) == (expected > 0)
    if broken is not None:
        assert broken == (f"max_duplicate_ngrams {n}", pytest.approx(expected / len(text)), 0.0)


@pytest.mark.parametrize(
    ("text", "rule", "value"),
    [
        ("a b\nc d\na b\na b\ne f", "max_duplicate_lines", 2 / 5),
        ("one two\n\nthree\n\none two", "max_duplicate_paragraphs", 1 / 3),
        ("x y z " + "go on " * 3, "max_top_ngrams 2", 5 * 3 / 24),
    ],
)
def test_repetition(text: str, rule: str, value: float) -> None:
    broken = check_repetition(text, RepetitionConfig())
    assert broken is not None
    assert broken.rule == rule
    assert broken.value == pytest.approx(value)
    assert check_repetition(GOOD, RepetitionConfig()) is None


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail me: jo.doe+x@mail.example.co.uk, now", "mail me: <email>, now"),
        ("not @here nor a@b nor x@y.", "not @here nor a@b nor x@y."),
        ("call +49 30 1234567 or (555) 123-4567.", "call <phone> or <phone>."),
        ("Call 07700900123 / 555-123-4567!", "Call <phone> / <phone>!"),
        ("in 2019-2020, 1,234,567.89 and 3.141592653", "in 2019-2020, 1,234,567.89 and 3.141592653"),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from <ip> and <ip>"),
        ("at 192.168.1.1, 10.0.0.1, 127.0.0.1, 999.1.1.1", "at 192.168.1.1, 10.0.0.1, 127.0.0.1, 999.1.1.1"),
        ("card 4111 1111 1111 1111 or 5500-0000-0000-0004", "card <card> or <card>"),
        ("no card 4111 1111 1111 1112", "no card 4111 1111 1111 1112"),
        ("ISBN 978-3-16-148410-0, at 12:30:45, v1.2.3", "ISBN 978-3-16-148410-0, at 12:30:45, v1.2.3"),
    ],
)
def test_personal_data(text: str, masked: str) -> None:
    found, counts = mask(text, EVERY)
    assert found == masked
    assert sum(counts.values()) == masked.count("<")
    assert mask(text, []) == (text, {})


@given(st.lists(st.integers(0, 9), min_size=11, max_size=17), st.integers(2, 6))
def test_check_digits(middle: list[int], first: int) -> None:
    """Of the ten last digits exactly one makes a card number (ISO/IEC 7812-1, annex B)."""
    digits = [first, *middle]
    valid = [last for last in range(10) if is_card_number("".join(map(str, [*digits, last])))]
    total = sum(d if i % 2 else sum(divmod(2 * d, 10)) for i, d in enumerate(reversed(digits)))
    assert valid == [-total % 10] or set(digits) == {first}


def test_known_numbers() -> None:
    assert all(map(is_card_number, ("4111111111111111", "378282246310005", "6011111111111117")))
    assert is_public_address("8.8.4.4")
    assert not is_public_address("172.16.0.1")


def test_exact_duplicates_know_the_first_place() -> None:
    seen = ExactDuplicates()
    assert seen.first(text_digest("a text"), "one") is None
    assert seen.first(text_digest("A text"), "two") is None
    assert seen.first(text_digest(" a text\n"), "three") == "one"


def jaccard(a: str, b: str, n: int) -> float:
    sets = [{tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)} for text in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_by_their_similarity() -> None:
    pytest.importorskip("datasketch")
    config = NearDuplicatesConfig(threshold=0.7)
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 500, 400)]
    near, far = list(words), list(words)
    near[100] = near[300] = "other"
    for place in range(0, 400, 8):
        far[place] = "other"
    texts = [" ".join(one) for one in (words, near, far)]
    assert jaccard(texts[0], texts[1], 5) > 0.9
    assert jaccard(texts[0], texts[2], 5) < 0.5
    index = NearDuplicates(config)
    assert index.first(signature(texts[0], config), "first") is None
    found = index.first(signature(texts[1], config), "second")
    assert found is not None
    assert found[0] == "first"
    assert found[1] == pytest.approx(jaccard(texts[0], texts[1], 5), abs=0.1)
    assert index.first(signature(texts[2], config), "third") is None
    assert signature("A, few: WORDS", config) == signature("a few words", config)


def test_html_to_text() -> None:
    pytest.importorskip("trafilatura")
    body = "".join(
        f"<p>This is paragraph {i} of the article, and it says enough to be kept.</p>" for i in range(9)
    )
    page = f"<html><body><nav><a href='x'>Menu</a></nav><article>{body}</article></body></html>"
    cleaner = Cleaner(CleanConfig(html=True))
    cleaned = cleaner(page)
    assert "paragraph 3 of the article" in cleaned.text
    assert "<p>" not in cleaned.text
    assert "Menu" not in cleaned.text
    assert cleaned.counts == {"html": 1}
    assert cleaner("plain text, 1 < 2 and 3 > 2").text == "plain text, 1 < 2 and 3 > 2"
    assert cleaner("<html><body></body></html>").removed == "html no text"


def test_steps_in_their_order() -> None:
    config = CleanConfig(
        unicode=UnicodeForm.NFC, control_characters=True, personal=[Personal.email], exact_duplicates=True
    )
    cleaned = Cleaner(config)("cafe\u0301\x00 me@example.org")
    assert cleaned.text == "café <email>"
    assert cleaned.counts == {"unicode NFC": 1, "control characters": 1, "personal email": 1}
    assert "me@example" not in str(cleaned.examples["personal email"])
    assert cleaned.digest == text_digest("café <email>")
    assert Cleaner(CleanConfig())("a\x00").text == "a\x00"
