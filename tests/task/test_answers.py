"""The best spans of a row, and the answers that they are."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.task.answers import best_spans, candidates, softmax


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 12), st.integers(0, 5), st.integers(0, 7))
def test_best_spans_are_those_of_a_search(seed: int, longest: int, k: int, first: int, num: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 12, 2, generator=generator)
    allowed = torch.zeros(2, 12, dtype=torch.bool)
    allowed[0, first : first + num] = True
    output = best_spans(scores, allowed, longest, k)
    assert output.shape == (2, 1 + 3 * k)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output[:, 0], scores[:, 0].sum(-1))
    assert not torch.isfinite(output[1, 1 + 2 * k :]).any()
    pairs = [
        (float(scores[0, start, 0] + scores[0, end, 1]), start, end)
        for start in range(first, first + num)
        for end in range(start, min(start + longest, first + num))
    ]
    starts, ends, values = output[0, 1:].reshape(3, k)
    found = [
        (float(value), int(start), int(end))
        for value, start, end in zip(values, starts, ends, strict=True)
        if torch.isfinite(value)
    ]
    assert found == sorted(pairs, reverse=True)[:k]


def test_candidates_are_different_texts() -> None:
    offsets = np.array([[0, 3], [3, 4], [4, 8], [8, 11]])  # "The| | cat| The"
    spans = np.array([[0, 0, 1.0], [1, 1, 9.0], [2, 2, 3.0], [0, 2, 2.0]])
    again = np.array([[0, 0, 5.0]])
    found = candidates([(spans, offsets), (again, offsets[3:]), (spans[:0], offsets)], "The  catThe", 3)
    assert [(one.text, one.start, one.end, one.score) for one in found] == [
        ("The", 8, 11, 5.0),  # the better one of two places
        ("cat", 5, 8, 3.0),  # without the blank that belongs to the token
        ("The  cat", 0, 8, 2.0),
    ]
    assert len(candidates([(spans, offsets)], "The  catThe", 1)) == 1
    assert candidates([], "The", 3) == []


@given(st.lists(st.floats(-50, 50), max_size=5))
def test_softmax(scores: list[float]) -> None:
    assert softmax(scores) == pytest.approx(scipy.special.softmax(scores).tolist() if scores else [])
