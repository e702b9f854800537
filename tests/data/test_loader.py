from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
import torch

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.loader import Loader, evaluation_batches
from llmtrain.data.rows import StreamRows, causal_batch
from llmtrain.data.store import whole

LENGTH = 6


@pytest.fixture
def rows(make_store) -> StreamRows:
    texts = ["".join(chr(33 + (i * 5 + j) % 90) for j in range(1 + i % 9)) for i in range(31)]
    view = whole(make_store(texts))
    return StreamRows(view, sequence_length=LENGTH, seed=7, isolate_documents=True)


def global_batches(rows, world: int, micro: int, *, steps: int, batch_size: int = 8, start_row: int = 0):
    """Sorted rows of each global batch, put together from all ranks."""
    loaders = [
        Loader(
            rows,
            batch_size=batch_size,
            micro_batch_size=micro,
            rank=rank,
            world=world,
            start_row=start_row,
        )
        for rank in range(world)
    ]
    result = []
    for _ in range(steps):
        batches = [loader.next() for loader in loaders]
        assert all(len(part) == batch_size // (micro * world) for part in batches)
        assert all(batch.ids.shape == (micro, LENGTH) for part in batches for batch in part)
        # microbatch j of every rank, then j + 1: the order of the rows in the stream
        ordered = [batch for group in zip(*batches, strict=True) for batch in group]
        result.append(torch.cat([torch.cat([b.ids, b.labels], 1) for b in ordered]).tolist())
    assert {loader.row for loader in loaders} == {start_row + steps * batch_size}
    for loader in loaders:
        loader.close()
    return result


def test_global_batches_do_not_depend_on_the_layout(rows: StreamRows) -> None:
    steps = 2 * rows.rows_per_epoch // 8 + 2  # across two epochs
    expected = global_batches(rows, 1, 8, steps=steps)
    first = [rows.read(i).ids[:-1].tolist() for i in range(8)]
    assert [row[:LENGTH] for row in expected[0]] == first
    for world, micro in [(1, 1), (1, 2), (2, 1), (2, 4), (4, 1), (4, 2), (8, 1)]:
        assert global_batches(rows, world, micro, steps=steps) == expected
    resumed = global_batches(rows, 2, 2, steps=steps - 3, start_row=3 * 8)
    assert resumed == expected[3:]


def test_causal_batches(make_store) -> None:
    rows = StreamRows(
        whole(make_store(["abc", "d", "efghij"])),
        sequence_length=5,
        seed=0,
        shuffle=False,
    )
    read = [rows.read(i) for i in range(3)]
    batch = causal_batch(read, isolate_documents=True)
    assert batch.documents is not None
    assert batch.positions is not None
    assert batch.selected is None
    assert batch.labels.tolist() == [
        [98, 99, 256, IGNORE, 256],
        [IGNORE, 102, 103, 104, 105],
        [106, 256, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 0, 1, 2, 3], [0, 1, 2, 0, 1]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert (batch.documents.dtype, batch.ids.dtype) == (torch.int32, torch.int64)
    joined = causal_batch(read, isolate_documents=False)
    assert joined.documents is None
    assert joined.positions is None
    assert joined.labels.tolist()[:2] == [[98, 99, 256, 100, 256], [101, 102, 103, 104, 105]]
    assert joined.labels.tolist()[2] == [106, 256, IGNORE, IGNORE, IGNORE]


@pytest.mark.parametrize("max_tokens", [None, 1, 6, 7, 50, 10**6])
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 4), (2, 3), (4, 2), (3, 100)])
def test_evaluation_sees_every_row_once(make_store, world: int, micro: int, max_tokens: int | None) -> None:
    view = whole(make_store(["".join(chr(33 + (i + j) % 90) for j in range(1 + i % 9)) for i in range(31)]))
    rows = StreamRows(view, sequence_length=LENGTH, seed=7, shuffle=False)
    ranks = [
        list(evaluation_batches(rows, micro, rank, world, max_tokens=max_tokens)) for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    num = min(rows.rows_per_epoch, -(-(max_tokens or 10**9) // LENGTH))
    size = min(micro, -(-num // world))  # no more rows than there are for each
    assert {batch.ids.shape for batches in ranks for batch in batches} == {(size, LENGTH)}
    ordered = [batch for group in zip(*ranks, strict=True) for batch in group]
    labels = torch.cat([batch.labels for batch in ordered]).flatten()
    tokens = view.read(0, view.num_tokens).tolist()
    count = len(tokens) - 1 if max_tokens is None else min(max_tokens, len(tokens) - 1)
    assert labels[labels != IGNORE].tolist() == tokens[1 : count + 1]


class Faulty:
    sequence_length = 2
    rows_per_epoch = 100

    def read(self, global_row: int) -> int:
        if global_row == 5:
            raise RuntimeError("row 5 is broken")
        return global_row

    def collate(self, rows: Sequence[int]) -> Batch:
        return Batch(torch.tensor([[row] * self.sequence_length for row in rows]))

    def filler(self) -> int:
        return -1

    def limit(self, row: int, tokens: int) -> int:
        return row


def test_errors_reach_the_caller_at_their_step() -> None:
    loader = Loader(Faulty(), batch_size=2, micro_batch_size=2, rank=0, world=1)
    loader.next()
    loader.next()
    with pytest.raises(RuntimeError, match="row 5 is broken"):
        loader.next()
    assert loader.row == 4
    loader.close()


def test_waiting_is_counted_and_threads_end() -> None:
    class Slow(Faulty):
        def read(self, global_row: int) -> int:
            time.sleep(0.05)
            return super().read(0)

    before = threading.active_count()
    loader = Loader(Slow(), batch_size=2, micro_batch_size=1, rank=0, world=1)
    loader.next()
    assert loader.wait_seconds > 0.05
    loader.wait_seconds = 0.0
    time.sleep(0.4)
    loader.next()
    assert loader.wait_seconds < 0.05
    loader.close()
    assert threading.active_count() == before
