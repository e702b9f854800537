from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data import plans
from llmtrain.data.loader import Loader, evaluation_batches
from llmtrain.data.mask import Masker
from llmtrain.data.packed import PackedRows, max_samples, pack
from llmtrain.data.spans import Contents, SpanRows, cut
from llmtrain.data.store import View, whole
from llmtrain.schema.objective import MLMConfig
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.text import story, word_tokenizer

SETTINGS = settings(max_examples=150, deadline=None)


def span_rows(view: View, length: int = 16, *, seed: int = 1, shuffle: bool = True) -> SpanRows:
    masker = Masker(MLMConfig(), view.store.tokenizer, sequence_length=length, seed=seed)
    return SpanRows(view, sequence_length=length, seed=seed, shuffle=shuffle, masker=masker)


@pytest.fixture
def view(make_store) -> View:
    """Documents of very different lengths."""
    texts = [story(i, 1 + i * i % 17, longest=4 + i) for i in range(40)]
    return whole(make_store(texts, tokenizer=word_tokenizer(), shard_tokens=1000))


def best_fit(lengths: list[int], capacity: int) -> int:
    """Rows of best fit decreasing, item by item."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=spaces.__getitem__)] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)


@st.composite
def packings(draw):
    capacity = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=60))
    return np.array(lengths), capacity, draw(st.integers(1, 8)), draw(st.permutations(range(len(lengths))))


@SETTINGS
@given(packings())
def test_packed_rows_hold_what_they_may(packing) -> None:
    lengths, capacity, limit, order = packing
    rows = pack(lengths, np.array(order), capacity, limit)
    assert np.bincount(rows, weights=lengths).max() <= capacity
    assert np.bincount(rows).max() <= limit
    assert np.bincount(rows).min() >= 1
    first = [int(np.flatnonzero(rows == row)[0]) for row in range(rows.max() + 1)]
    assert first == sorted(first)
    unlimited = pack(lengths, np.array(order), capacity, capacity)
    assert unlimited.max() + 1 == best_fit(lengths.tolist(), capacity)


def test_packing_is_fast_and_tight() -> None:
    lengths = np.random.default_rng(0).integers(5, 129, 500_000)
    start = time.process_time()
    rows = pack(lengths, np.arange(len(lengths)), 128, 8)
    assert time.process_time() - start < 2
    assert lengths.sum() / (128 * (rows.max() + 1)) > 0.99


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), min_size=1, max_size=20), st.integers(1, 7))
def test_cuts_cover_every_document(documents, size: int) -> None:
    lengths = np.array([length for length, _ in documents])
    phases = np.array([phase % size for _, phase in documents])
    document, starts, ends = cut(lengths, size, phases)
    covered = [
        (d, i) for d, start, end in zip(document, starts, ends, strict=True) for i in range(start, end)
    ]
    assert covered == [(d, i) for d, length in enumerate(lengths) for i in range(length)]
    assert ((ends - starts >= 1) & (ends - starts <= size)).all()
    for number, (length, phase) in enumerate(zip(lengths, phases, strict=True)):
        own = ends[document == number]
        if length <= size:
            assert len(own) <= 1
        else:
            assert own[0] == (phase or size)
            assert (np.diff(own)[:-1] == size).all()


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", [3, 9, 16, 600])
def test_every_token_once_in_an_epoch(view: View, shuffle: bool, length: int) -> None:
    rows = span_rows(view, length, shuffle=shuffle)
    end_id = view.store.end_id
    everything = view.read(0, view.num_tokens)
    assert view.num_tokens > 1000  # more than a shard
    for epoch in (0, 1, 3):
        plan = rows.plan(epoch)
        _, starts, ends = plan.samples
        places = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        assert sorted(places.tolist()) == np.flatnonzero(everything != end_id).tolist()
        begin = sum(rows.plan(i).num_rows for i in range(epoch))
        for i in range(plan.num_rows):
            row = rows.read(begin + i)
            assert row.epoch == (epoch if shuffle else 0)
            assert 0 < row.length <= length
            assert len(row.samples) <= max_samples(length)
            for sample in row.samples:
                start, end = starts[sample.number], ends[sample.number]
                assert sample.ids[0] == rows.frame.start[0]
                assert sample.ids[-1] == rows.frame.end[0]
                assert sample.ids[1:-1].tolist() == everything[start:end].tolist()
                assert not sample.segments.any()


def test_spans_stay_inside_documents_and_full_ones_alone(view: View) -> None:
    rows = span_rows(view)
    row, starts, ends = rows.plan(0).samples
    ids = view.read(0, view.num_tokens)
    assert all(view.store.end_id not in ids[start:end] for start, end in zip(starts, ends, strict=True))
    sizes = np.bincount(row)
    assert (sizes[row[ends - starts == rows.size]] == 1).all()
    assert (sizes > 1).any()


def test_cuts_move_from_epoch_to_epoch(view: View) -> None:
    rows = span_rows(view)
    cuts = [set(rows.plan(epoch).samples[1].tolist()) for epoch in range(4)]
    assert all(a != b for i, a in enumerate(cuts) for b in cuts[:i])
    unmoved = span_rows(view, shuffle=False)
    assert set(unmoved.plan(0).samples[1].tolist()) == set(unmoved.plan(3).samples[1].tolist())


def test_without_shuffling_rows_stand_in_the_order_of_the_text(view: View) -> None:
    rows = span_rows(view, shuffle=False)
    firsts = [
        min(rows.plan(0).samples[1][s.number] for s in rows.read(i).samples)
        for i in range(rows.rows_per_epoch)
    ]
    assert firsts == sorted(firsts)
    assert rows.read(3 * rows.rows_per_epoch + 5).samples[0].number == rows.read(5).samples[0].number


def stream(rows: PackedRows, start: int, num: int) -> list[list[list[int]]]:
    return [[sample.ids.tolist() for sample in rows.read(start + i).samples] for i in range(num)]


def test_the_stream_goes_on_where_it_was(view: View) -> None:
    one = span_rows(view)
    sizes = [one.plan(epoch).num_rows for epoch in range(5)]
    assert len(set(sizes)) > 1
    assert one.rows_per_epoch == sizes[0]
    expected = stream(one, 0, sum(sizes))
    for start in (0, sizes[0] - 1, sizes[0], sum(sizes[:4]) + 2):
        assert stream(span_rows(view), start, 3) == expected[start : start + 3]
        epoch = int(np.searchsorted(np.cumsum(sizes), start, side="right"))
        assert span_rows(view).locate(start) == (epoch, start - sum(sizes[:epoch]))
    assert stream(span_rows(view, seed=2), 0, 5) != expected[:5]


def test_big_plans_are_shared_files(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = span_rows(view)
    far = sum(memory.plan(epoch).num_rows for epoch in range(4))
    expected = stream(memory, 0, far + 3)
    monkeypatch.setattr(plans, "PLAN_FILE_ENTRIES", 1)
    assert stream(span_rows(view), 0, far + 3) == expected
    files = sorted(path.name.split("-")[-1] for path in (view.store.path / "plans").glob("*.npy"))
    assert files == ["3.npy", "4.npy"]
    made: list[int] = []
    make = SpanRows._make_plan
    monkeypatch.setattr(SpanRows, "_make_plan", lambda self, epoch: made.append(epoch) or make(self, epoch))
    resumed = span_rows(view)  # knows how many rows the first epochs had without planning them again
    assert resumed.rows_per_epoch == memory.rows_per_epoch
    assert stream(resumed, far, 3) == expected[far:]
    assert made == []


def test_plans_without_a_place_to_write(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stream(span_rows(view), 0, 10)
    monkeypatch.setattr(plans, "PLAN_FILE_ENTRIES", 1)
    (view.store.path / "plans").write_text("in the way")
    assert stream(span_rows(view), 0, 10) == expected


def test_batches_do_not_depend_on_the_layout(view: View) -> None:
    rows = span_rows(view)

    steps = 2 * rows.rows_per_epoch // 8 + 1  # across an epoch

    def global_batches(world: int, micro: int) -> list[list[list[int]]]:
        loaders = [
            Loader(rows, batch_size=8, micro_batch_size=micro, rank=rank, world=world)
            for rank in range(world)
        ]
        result = []
        for _ in range(steps):
            parts = zip(*(loader.next() for loader in loaders), strict=True)
            batches = [batch for group in parts for batch in group]
            result.append(torch.cat([torch.cat([b.ids, b.labels, b.selected], 1) for b in batches]).tolist())
        for loader in loaders:
            loader.close()
        return result

    expected = global_batches(1, 8)
    for world, micro in [(1, 2), (2, 4), (4, 1)]:
        assert global_batches(world, micro) == expected


def test_batches(view: View) -> None:
    rows = span_rows(view, shuffle=False)
    read = [rows.read(i) for i in range(rows.rows_per_epoch)]
    batch = rows.collate([*read, rows.filler()])
    num = len(read) + 1
    assert (
        batch.ids.shape == batch.positions.shape == batch.documents.shape == batch.segments.shape == (num, 16)
    )
    assert batch.labels.shape == batch.selected.shape == (num, rows.masker.num_selected)
    assert batch.first.shape == (num, 8)
    assert batch.sample_labels is None
    assert batch.num_tokens == sum(row.length for row in read)
    assert (batch.labels[-1] == -100).all()
    assert (batch.ids[-1] == rows.pad_id).all()
    assert rows.limit(read[0], 3) is read[0]


def test_evaluation_is_the_same_each_time(view: View) -> None:
    first, second = (list(evaluation_batches(span_rows(view, shuffle=False), 4, 0, 1)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.ids == b.ids).all()
        assert (a.labels == b.labels).all()


def test_what_is_too_short(view: View, make_store) -> None:
    with pytest.raises(ConfigError, match="a row of 2 tokens"):
        span_rows(view, 2)
    store = make_store(["\u200b", "\u200b"], tokenizer=word_tokenizer())  # text, but no token
    with pytest.raises(DataError, match="no tokens to predict"):
        span_rows(whole(store))


def test_contents_leave_end_tokens_out(make_store) -> None:
    store = make_store(["ba be", "bi", "\u200b", "bo bu ca"], tokenizer=word_tokenizer(), max_tokens=8)
    contents = Contents(whole(store))
    assert contents.lengths.tolist() == [2, 1, 0, 2]  # the last document is cut and has no end token
    assert store.tokenizer.decode(contents.read(0, 5)) == "ba be bi bo bu"
    assert store.tokenizer.decode(contents.read(1, 4)) == "be bi bo"
    assert contents.borders(0, 5).tolist() == [0, 2, 3]


def test_plans_are_fast(make_store) -> None:
    store = make_store(["ba"], tokenizer=word_tokenizer())
    num = 300_000
    view = View(store, np.zeros(num, np.int64), np.ones(num, np.int64))
    rows = span_rows(view, 64)
    start = time.process_time()
    rows._make_plan(1)
    assert time.process_time() - start < 2
