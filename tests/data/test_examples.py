"""Rows of examples: every example once in an epoch, alike lengths together, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batch import Batch
from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import PackedRow, Sample, pack_batch


def samples(lengths: Sequence[int]) -> list[Sample]:
    return [
        Sample(np.full(n, 7, np.int64), np.zeros(n, np.int64), number) for number, n in enumerate(lengths)
    ]


def rows(lengths: Sequence[int], batch_size: int, shuffle: bool = True, limit: int = 512) -> ExampleRows:
    return ExampleRows(
        samples(lengths),
        lambda rows, length, pad: pack_batch(rows, length, pad),
        sequence_length=limit,
        batch_size=batch_size,
        pad_id=0,
        seed=3,
        shuffle=shuffle,
    )


def batches(stream: ExampleRows, size: int, number: int) -> list[list[PackedRow]]:
    return [[stream.read(i * size + k) for k in range(size)] for i in range(number)]


@given(num=st.integers(1, 300), size=st.integers(1, 40), epoch=st.integers(0, 5), shuffle=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_example_once(num: int, size: int, epoch: int, shuffle: bool) -> None:
    lengths = np.random.default_rng(num).integers(1, 90, num).tolist()
    stream = rows(lengths, size, shuffle)
    read = [stream.read(epoch * num + i).samples[0].number for i in range(num)]
    assert sorted(read) == list(range(num))
    assert read == [stream.read(epoch * num + i).samples[0].number for i in range(num)]


def test_epochs_differ_and_evaluation_goes_by_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 90, 200).tolist()
    stream = rows(lengths, 8)
    assert not np.array_equal(stream.order(0), stream.order(1))
    ordered = [lengths[i] for i in rows(lengths, 8, shuffle=False).order(0)]
    assert ordered == sorted(lengths, reverse=True)


def test_batches_hold_examples_of_like_length_in_every_epoch_even_where_epochs_end_inside_a_batch() -> None:
    lengths = np.random.default_rng(1).integers(4, 100, 1003).tolist()
    size = 16
    stream = rows(lengths, size)
    spreads = [
        max(row.length for row in batch) - min(row.length for row in batch)
        for batch in batches(stream, size, 4 * 1003 // size)
    ]
    assert np.median(spreads) <= 6
    # only batches at the end of an epoch, and of its last window, mix lengths
    assert sum(spread > 30 for spread in spreads) <= 8
    firsts = [batch[0].length for batch in batches(stream, size, 40)]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


@pytest.mark.parametrize(("longest", "padded"), [(1, 1), (9, 9), (33, 34), (65, 68), (129, 136), (300, 304)])
def test_padding_is_small(longest: int, padded: int) -> None:
    batch: Batch = rows([longest], 1).collate([PackedRow(samples([longest]))])
    assert batch.ids.shape == (1, padded)
    assert batch.num_tokens == longest


def test_padding_never_exceeds_the_limit_of_the_model() -> None:
    assert rows([100], 1, limit=100).collate([PackedRow(samples([100]))]).ids.shape == (1, 100)


def test_a_batch_of_fillers_has_a_shape() -> None:
    stream = rows([5], 2)
    batch = stream.collate([stream.filler()] * 2)
    assert batch.ids.shape == (2, 1)
    assert batch.num_tokens == 0
