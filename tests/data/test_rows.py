from __future__ import annotations

import time

import numpy as np
import pytest

from llmtrain.data import plans
from llmtrain.data.rows import Row, StreamRows
from llmtrain.data.store import View, split, whole
from llmtrain.utils.seed import Permutation


def stream(view: View, length: int = 8, **settings) -> StreamRows:
    options = {"seed": 1, **settings}
    return StreamRows(view, sequence_length=length, **options)


def varied(make_store, num: int = 23) -> View:
    """Documents whose tokens can all be told apart, by 16-bit ids made from bytes."""
    return whole(
        make_store(["".join(chr(33 + (i * 7 + j) % 90) for j in range(1 + i * i % 13)) for i in range(num)])
    )


def inputs(rows: StreamRows, epoch: int) -> list[Row]:
    start = epoch * rows.rows_per_epoch
    return [rows.read(start + i) for i in range(rows.rows_per_epoch)]


def store_positions(rows: StreamRows, epoch: int) -> np.ndarray:
    """Positions in the store of the epoch's stream, in its order."""
    plan = rows.plan(epoch)
    lengths = np.diff(plan.ends, prepend=0)
    return np.concatenate([np.arange(s, s + n) for s, n in zip(plan.starts, lengths, strict=True)])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", [1, 3, 8, 1000])
def test_every_token_is_an_input_once_in_an_epoch(make_store, shuffle: bool, length: int) -> None:
    view = varied(make_store)
    rows = stream(view, length, shuffle=shuffle)
    assert rows.rows_per_epoch == -(-view.num_tokens // length)
    expected = view.read(0, view.num_tokens)
    for epoch in (0, 1, 5):
        positions = store_positions(rows, epoch)
        assert sorted(positions.tolist()) == list(range(view.num_tokens))
        read = inputs(rows, epoch)
        assert sum(row.length for row in read) == view.num_tokens
        if shuffle:
            order = Permutation(rows.rows_per_epoch, 1, "rows", epoch)
            place = {order.at(i): row for i, row in enumerate(read)}
            read = [place[i] for i in range(len(place))]
        joined = np.concatenate([row.ids[: row.length] for row in read])
        assert joined.tolist() == expected[positions].tolist()
        following = np.append(joined[1:], -1)
        targets = np.concatenate([row.ids[1 : row.length + 1] for row in read])
        assert targets[:-1].tolist() == following[:-1].tolist()
        assert [row.has_next for row in read] == [True] * (len(read) - 1) + [False]
        assert sum(int(row.has_label(False).sum()) for row in read) == view.num_tokens - 1


def test_validation_keeps_the_order_of_the_file(make_store) -> None:
    view = varied(make_store)
    rows = stream(view, shuffle=False)
    joined = np.concatenate([row.ids[: row.length] for row in inputs(rows, 0)])
    assert joined.tolist() == view.read(0, view.num_tokens).tolist()
    assert [row.ids.tolist() for row in inputs(rows, 3)] == [row.ids.tolist() for row in inputs(rows, 0)]


def test_documents_inside_rows(make_store) -> None:
    rows = stream(whole(make_store(["abc", "d", "efghij"])), 5, shuffle=False)
    first, second, third = inputs(rows, 0)
    assert first.documents.tolist() == [0, 0, 0, 0, 1, 1]
    assert first.has_label(False).tolist() == [True] * 5
    assert first.has_label(True).tolist() == [True, True, True, False, True]
    assert second.documents.tolist() == [0, 1, 1, 1, 1, 1]
    assert (third.length, third.has_next) == (3, False)
    assert third.documents.tolist() == [0, 0, 0, 1, 1, 1]
    assert third.ids.tolist() == [105, 106, 256, 256, 256, 256]
    assert third.has_label(False).tolist() == [True, True, False, False, False]


def test_rows_of_one_document_start_elsewhere_in_each_epoch(make_store) -> None:
    text = "".join(chr(33 + i % 90) for i in range(500))
    train, _ = split(make_store([text]), 0.1, seed=0)
    rows = stream(train, 50)
    starts = {int(rows.plan(epoch).starts[0]) for epoch in range(5)}
    assert len(starts) == 5
    assert rows.plan(3).ends[-1] == 450
    assert rows.locate(9 * 3 + 2) == (3, 2)
    seam = [row for row in inputs(rows, 0) if row.documents[0] != row.documents[row.length - 1]]
    assert len(seam) == 1


def test_orders_depend_on_seed_and_epoch_only(make_store) -> None:
    view = varied(make_store)
    one, same, other = stream(view), stream(view), stream(view, seed=2)
    ids = [one.read(i).ids.tolist() for i in range(3 * one.rows_per_epoch)]
    backwards = [same.read(i).ids.tolist() for i in reversed(range(len(ids)))]
    assert ids == backwards[::-1]
    assert ids != [other.read(i).ids.tolist() for i in range(len(ids))]
    epoch = one.rows_per_epoch
    assert ids[:epoch] != ids[epoch : 2 * epoch]


def test_plans_of_big_views_are_shared_files(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    view = varied(make_store)
    memory = stream(view)
    expected = [[row.ids.tolist() for row in inputs(memory, epoch)] for epoch in range(4)]
    monkeypatch.setattr(plans, "PLAN_FILE_ENTRIES", 1)
    files = stream(view)
    assert [[row.ids.tolist() for row in inputs(files, epoch)] for epoch in range(4)] == expected
    assert isinstance(files.plan(3).starts.base.base, np.memmap)
    epochs = sorted(path.stem.rsplit("-", 1)[1] for path in (view.store.path / "plans").glob("*.npy"))
    assert epochs == ["2", "3"]
    monkeypatch.setattr(StreamRows, "_make_plan", lambda self, epoch: pytest.fail("made again"))
    stream(view).plan(3)


def test_plans_without_a_place_to_write(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    view = varied(make_store)
    monkeypatch.setattr(plans, "PLAN_FILE_ENTRIES", 1)
    (view.store.path / "plans").write_text("in the way")
    assert stream(view).plan(0).ends[-1] == view.num_tokens


def test_plans_are_fast(make_store) -> None:
    store = make_store(["x"])
    num = 100_000
    view = View(store, np.zeros(num, np.int64), np.ones(num, np.int64))
    rows = stream(view, 64)
    start = time.perf_counter()
    rows.plan(0)
    assert time.perf_counter() - start < 1
