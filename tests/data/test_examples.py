"""Rows of examples: every example once in an epoch, alike lengths together, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batch import Batch
from llmtrain.data.examples import ExampleRows, PackedExamples
from llmtrain.data.samples import PackedRow, Sample, pack_batch


def samples(lengths: Sequence[int]) -> list[Sample]:
    return [
        Sample(np.full(n, 7, np.int64), np.zeros(n, np.int64), number) for number, n in enumerate(lengths)
    ]


def rows(
    lengths: Sequence[int], batch_size: int, shuffle: bool = True, limit: int = 512, multiple: int = 1
) -> ExampleRows:
    return ExampleRows(
        samples(lengths),
        lambda rows, length, pad: pack_batch(rows, length, pad),
        sequence_length=limit,
        batch_size=batch_size,
        pad_id=0,
        seed=3,
        shuffle=shuffle,
        multiple=multiple,
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


@pytest.mark.parametrize("length", [0, 1, 5, 31, 33, 100, 500])
def test_processes_that_share_out_a_row_have_equal_parts_of_it(length: int) -> None:
    """Rows of fillers too: at the end of an evaluation a process may have nothing else."""
    stream = rows([500], 2, multiple=6, limit=516)
    row = PackedRow(samples([length])) if length else stream.filler()
    padded = stream.collate([row] * 2).ids.shape[1]
    assert padded >= max(1, length)
    assert padded % 6 == 0


def packed(lengths: Sequence[int], limit: int, seed: int = 3) -> PackedExamples:
    return PackedExamples(
        samples(lengths),
        lambda rows, length, pad: pack_batch(rows, length, pad, max(len(row.samples) for row in rows)),
        sequence_length=limit,
        pad_id=0,
        seed=seed,
    )


def epoch_of(stream: PackedExamples, epoch: int) -> list[list[int]]:
    """Numbers of the samples in each row."""
    start = epoch * stream.rows_per_epoch
    read = [stream.read(start + i) for i in range(stream.rows_per_epoch)]
    assert {row.epoch for row in read} == {epoch}
    return [[sample.number for sample in row.samples] for row in read]


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=200),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_packed_rows_have_every_example_once_and_whole(lengths: list[int], epoch: int, seed: int) -> None:
    rows = epoch_of(packed(lengths, 64, seed), epoch)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 64 for row in rows)
    assert rows == epoch_of(packed(lengths, 64, seed), epoch)  # whoever asks, and whenever


def test_packing_wastes_little_and_is_drawn_anew() -> None:
    lengths = np.random.default_rng(0).lognormal(4.3, 0.7, 2000).clip(10, 512).astype(int).tolist()
    stream = packed(lengths, 512)
    assert stream.mean_length > 0.97 * 512
    first, second = epoch_of(stream, 0), epoch_of(stream, 1)
    together = [{frozenset(row) for row in rows} for rows in (first, second)]
    assert len(together[0] & together[1]) < 0.2 * len(first)
    assert first != [sorted(row) for row in second]
    assert stream.collate([stream.read(0), stream.read(1)]).ids.shape == (2, 512)
