"""The ids by the table of words are those of the tokenizers library, whatever the text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtrain.data import tokenizer, word_table
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import bpe_tokenizer, unigram_tokenizer, wordpiece_tokenizer
from llmtrain.schema.tokenizer import BPETokenizer, UnigramTokenizer, WordPieceTokenizer

SAMPLE = (
    "The quick brown fox, isn't it?  We'll see\n\n\tin 1984 \u2028 ... 'tis the dogs' bone; we've 3rd-rate "
    "“quotes” — cafés, naïve \u00a0 x\u0301 a1b2 don't, can''t \n \n  end 你好。世界\n"
)
CHARACTERS = (
    " \n\n\r\t  ''\"sdlrevmtTHE.,-!19aé“”"
    "\u00a0\u2028\u2009\u200b\u3000\u1680\x1f\x85\ufeff\u0301你\U0001f600_\x01"
)
TEXT = st.text(st.sampled_from(CHARACTERS), max_size=60) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=40
)
KINDS = ["bpe", "bpe with added tokens", "byte fallback", "wordpiece", "cased wordpiece", "unigram"]


def texts() -> Iterator[str]:
    return iter([SAMPLE * 20])


def train(kind: str) -> Tokenizer:
    match kind:
        case "bpe":
            return bpe_tokenizer(BPETokenizer(vocab_size=500), texts())
        case "bpe with added tokens":
            return bpe_tokenizer(BPETokenizer(vocab_size=500, added_tokens=["1'T", "e."]), texts())
        case "byte fallback":
            return bpe_tokenizer(BPETokenizer(vocab_size=600, byte_fallback=True), texts())
        case "wordpiece":
            return wordpiece_tokenizer(WordPieceTokenizer(vocab_size=300), texts())
        case "cased wordpiece":
            return wordpiece_tokenizer(WordPieceTokenizer(vocab_size=300, lowercase=False), texts())
    return unigram_tokenizer(UnigramTokenizer(vocab_size=500), texts())


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Tokenizer, tokenizers.Tokenizer]]:
    """A tokenizer that looks up even the shortest text by words, and what its file gives."""
    made = train(request.param)
    library = tokenizers.Tokenizer.from_str(made.to_json())
    library.encode_special_tokens = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "TABLE_FROM", 0)
        yield made, library


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
@example([SAMPLE])
@example(["", "a\0b", "", "x" * 40 + " " + "y" * 17])
@example(["\n", " ", "\n\n a", "a \n", "a  ", "'s", "a's b'S ''s !'s\n's 1'll"])
def test_ids_are_those_of_the_library(made: tuple[Tokenizer, tokenizers.Tokenizer], many: list[str]) -> None:
    ours, library = made
    vars(ours).pop("_table", None)
    expected = [library.encode(text, add_special_tokens=False).ids for text in many]
    for _ in ("new words", "known words"):
        found = ours.encode_batch(many)
        assert [ids.tolist() for ids in found] == expected
        assert {ids.dtype for ids in found} == {ours.dtype}


def test_words_beyond_the_limit_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bpe_tokenizer(BPETokenizer(vocab_size=500), texts())
    asked: list[str] = []

    def encode(words: list[str]) -> list[list[int]]:
        asked.extend(words)
        return [made.encode(word).tolist() for word in words]

    monkeypatch.setattr(word_table, "MOST", 5)
    table = word_table.WordTable(encode, made.dtype, digits_apart=True, words_only=False)
    for text in ("one two three", "four five six seven", "one two eight", "four five six seven"):
        (ids,) = table.encode([text.encode()])
        np.testing.assert_array_equal(ids, made.encode(text))
    assert asked == [
        "one",
        " two",
        " three",
        "four",
        " five",
        " six",
        " seven",
        " eight",
        "four",
        " five",
        " six",
        " seven",
    ]


def test_a_full_neighbourhood_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table.WordTable, "_slot", lambda self, low, high: (low % 3).astype(np.int64))
    table = word_table.WordTable(
        lambda words: [[sum(word.encode())] for word in words],
        np.dtype(np.uint32),
        digits_apart=True,
        words_only=False,
    )
    text = " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200))
    for _ in range(2):
        (ids,) = table.encode([text.encode()])
        assert ids.tolist() == [
            sum((" " * (i > 0) + word).encode()) for i, word in enumerate(text.split(" "))
        ]
