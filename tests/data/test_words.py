from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.words import Words, read_word_list
from llmtrain.utils.errors import ConfigError

CONTINUES = np.array([False] * 5 + [True] * 2)
IDS = st.lists(st.integers(0, 6), min_size=1, max_size=30).map(np.array)
PHRASES = st.lists(st.lists(st.integers(0, 6), max_size=4).map(np.array), max_size=12)


def slowly(ids: list[int], phrases: list[list[int]]) -> list[bool]:
    """Word starts, found token by token."""
    starts = [i == 0 or not CONTINUES[token] for i, token in enumerate(ids)]
    i = 0
    while i < len(ids):
        matches = [len(p) for p in phrases if len(p) > 1 and ids[i : i + len(p)] == p]
        if starts[i] and matches:
            for k in range(i + 1, i + max(matches)):
                starts[k] = False
            i += max(matches)
        else:
            i += 1
    return starts


@settings(max_examples=300, deadline=None)
@given(IDS, PHRASES)
def test_the_longest_leftmost_phrase_wins(ids: np.ndarray, phrases: list[np.ndarray]) -> None:
    words = Words(CONTINUES, phrases)
    assert words.starts(ids).tolist() == slowly(ids.tolist(), [phrase.tolist() for phrase in phrases])


def test_pieces_continue_a_phrase() -> None:
    words = Words(CONTINUES, [np.array([0, 1])])
    assert words.starts(np.array([0, 1, 5, 2, 0, 0, 1])).tolist() == [
        True,
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    assert words.starts(np.array([5, 0])).tolist() == [True, True]  # cut inside a word


def test_word_lists(tmp_path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeff中国\n\n 人民 \r\n北京\n", encoding="utf-8")
    assert read_word_list(str(path)) == ["中国", "人民", "北京"]
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="the word list is empty") as caught:
        read_word_list(str(path))
    assert "objective.word_list" in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_word_list(str(tmp_path / "none.txt"))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_word_list(str(path))
