"""Mixtures: exact shares, the same rows for every world size, resumed anywhere; names of validation texts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmtrain.data.loader import Loader, evaluation_batches
from llmtrain.data.mixture import LONGEST_PERIOD, MixedRows, Shares, join, whole_shares
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.rows import StreamRows
from llmtrain.data.show import render_rows
from llmtrain.objective.build import build_objective
from llmtrain.recipe.data import mixture_lines, training_rows, validation_rows
from llmtrain.schema.data import MixtureData, OnError, TextData
from llmtrain.schema.objective import CausalConfig, MLMConfig, MLMNSPConfig, ObjectiveConfig
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, WordPieceTokenizer

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 500), st.floats(0.001, 1000.0).map(lambda weight: round(weight, 3))),
    min_size=1,
    max_size=6,
)


@given(weights=WEIGHTS, start=st.integers(0, 10**9), length=st.integers(1, 400))
@example(weights=[263.0, 0.002, 0.002], start=0, length=1)
@settings(max_examples=60, deadline=None)
def test_shares_are_exact_and_even(weights: list[float], start: int, length: int) -> None:
    shares = Shares(weights)
    total = sum(weights)
    for count, weight in zip(shares.counts, weights, strict=True):
        # a part for rounding, and one for each source that has one row although its share is less
        assert abs(count / shares.period - weight / total) <= len(weights) / LONGEST_PERIOD
    rows = [shares.locate(row) for row in range(start, start + length)]
    found = Counter(source for source, _ in rows)
    before, after = shares.count(start), shares.count(start + length)
    for source, count in enumerate(shares.counts):
        assert found[source] == after[source] - before[source]
        # Webster: at any time a source has its share of that time, rounded
        even = length * count / shares.period
        assert abs(found[source] - even) <= 1 + len(weights) * count / shares.period + 1e-9
    for source in found:  # each source's own rows come one behind the other, none is left out
        own = [number for other, number in rows if other == source]
        assert own == list(range(before[source], after[source]))


def test_shares_are_as_people_write_them() -> None:
    assert whole_shares([70, 30]) == whole_shares([0.7, 0.3]) == whole_shares([7.0, 3.0]) == [7, 3]
    assert whole_shares([1 / 3, 1 / 3, 1 / 3]) == [1, 1, 1]
    assert whole_shares([1.0, 1e9])[0] == 1
    assert "".join("ab"[Shares([3, 1]).locate(row)[0]] for row in range(8)) == "aabaaaba"


def write(path: Path, num: int, word: str) -> str:
    texts = [f"{word} number {i} says: {' '.join([word] * (5 + i % 17))}. It ends {i}." for i in range(num)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for name, num in (("ant", 90), ("bee", 40), ("cat", 25)):
        write(folder / f"{name}.jsonl", num, name)
    return folder


def mixture(folder: Path, weights: dict[str, float | None], **settings) -> MixtureData:
    sources = {
        name: TextData(paths=[str(folder / f"{name}.jsonl")], weight=weight, validation_fraction=0.1)
        for name, weight in weights.items()
    }
    return MixtureData(sources=sources, **settings)


def opened(
    folder: Path, objective: ObjectiveConfig, weights: dict[str, float | None]
) -> tuple[Prepared, MixedRows]:
    tokenizer = BytesTokenizer() if isinstance(objective, CausalConfig) else WordPieceTokenizer(vocab_size=60)
    data = mixture(folder, weights)
    prepared = prepare(data, tokenizer, seed=3, cache=folder / "cache")
    rows = training_rows(build_objective(objective, data), prepared, 32, 5)
    assert isinstance(rows, MixedRows)
    return prepared, rows


def global_batches(rows: MixedRows, world: int, micro: int, start: int = 0, steps: int = 4) -> list[list]:
    """What all ranks see in each step, in the order of the rows of the global batch."""
    size = 8
    loaders = [
        Loader(rows, batch_size=size, micro_batch_size=micro, rank=rank, world=world, start_row=start)
        for rank in range(world)
    ]
    result = []
    for _ in range(steps):
        parts = [loader.next() for loader in loaders]
        ordered = [parts[k][j] for j in range(size // (micro * world)) for k in range(world)]
        fields = ("ids", "labels", "selected", "sample_labels")
        joined = [[getattr(batch, field) for batch in ordered] for field in fields]
        result.append([torch.cat(values) if values[0] is not None else None for values in joined])
    for loader in loaders:
        loader.close()
    assert {loader.row for loader in loaders} == {start + steps * size}
    return result


def equal(a: list[list], b: list[list]) -> bool:
    pairs = [(x, y) for step, other in zip(a, b, strict=True) for x, y in zip(step, other, strict=True)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("objective", [CausalConfig(), MLMConfig(), MLMNSPConfig()], ids=lambda o: o.kind)
def test_rows_do_not_depend_on_the_world(texts: Path, objective: ObjectiveConfig) -> None:
    weights = {"ant": 2.0, "bee": 1.0, "cat": 1.0}
    _, rows = opened(texts, objective, weights)
    reference = global_batches(rows, world=1, micro=8)
    for world, micro in ((1, 2), (2, 2), (4, 1), (8, 1)):
        _, others = opened(texts, objective, weights)
        assert equal(global_batches(others, world, micro), reference)
    resumed = global_batches(opened(texts, objective, weights)[1], 2, 4, start=16, steps=2)
    assert equal(resumed, reference[2:])


def test_every_source_is_read_once_before_it_is_read_again(texts: Path) -> None:
    """The rows of a source in the mixture are those that it has by itself, epoch after epoch."""
    prepared, rows = opened(texts, CausalConfig(), {"ant": 1.0, "bee": 3.0})
    for number, name in enumerate(("ant", "bee")):
        alone = rows.sources[number]
        assert isinstance(alone, StreamRows)
        own = [
            rows.read(row).row.ids
            for row in range(8 * alone.rows_per_epoch)
            if rows.shares.locate(row)[0] == number
        ][: 2 * alone.rows_per_epoch]
        assert all(np.array_equal(ids, alone.read(i).ids) for i, ids in enumerate(own))
        view = prepared.trains[name]
        epoch = [alone.read(i) for i in range(alone.rows_per_epoch)]
        seen = np.sort(np.concatenate([row.ids[: row.length] for row in epoch]))
        every = np.sort(np.concatenate([view.read(*span) for span in zip(*view.spans, strict=True)]))
        assert np.array_equal(seen, every)


def test_without_weights_all_are_read_equally_often(texts: Path) -> None:
    _, rows = opened(texts, CausalConfig(), {"ant": None, "bee": None, "cat": None})
    assert set(rows.epochs(rows.rows_per_epoch).values()) == {1.0}
    assert set(rows.epochs(3 * rows.rows_per_epoch).values()) == {3.0}
    _, rows = opened(texts, CausalConfig(), {"ant": 70.0, "bee": 30.0})
    lines = mixture_lines(rows, 10, 10)
    assert lines[0].startswith("ant: 70 % of the rows, read ")
    assert rows.shares.count(100) == [70, 30]


def test_masks_of_sources_are_drawn_apart(texts: Path) -> None:
    """The same text under two names is masked differently, and its rows come in another order."""
    sources = {name: TextData(paths=[str(texts / "ant.jsonl")]) for name in ("one", "two")}
    data = MixtureData(sources=sources)
    prepared = prepare(data, WordPieceTokenizer(vocab_size=60), seed=3, cache=texts / "cache")
    rows = training_rows(build_objective(MLMConfig(), data), prepared, 32, 5)
    assert isinstance(rows, MixedRows)
    batches = [source.collate([source.read(i) for i in range(4)]) for source in rows.sources]
    assert not torch.equal(batches[0].ids, batches[1].ids)
    assert "source one, labels" in render_rows(prepared.tokenizer, rows, 2)


def test_batches_are_joined_in_order(texts: Path) -> None:
    _, rows = opened(texts, MLMNSPConfig(), {"ant": 1.0, "bee": 1.0, "cat": 2.0})
    chosen = [rows.read(i) for i in range(12)]
    whole = rows.collate(chosen)
    parts = [rows.collate([row]) for row in chosen]
    again = join(parts, [[i] for i in range(12)])
    for name in ("ids", "labels", "selected", "positions", "documents", "segments", "first", "sample_labels"):
        assert torch.equal(getattr(whole, name), getattr(again, name))
    assert whole.num_tokens == again.num_tokens
    filler = rows.collate([rows.filler(), chosen[0]])
    assert torch.equal(filler.ids[1], whole.ids[0])


def test_names_of_what_is_validated_on(texts: Path) -> None:
    data = mixture(texts, {"ant": 1.0, "bee": 1.0})
    prepared = prepare(data, BytesTokenizer(), seed=0, cache=texts / "cache")
    assert list(prepared.validations) == ["ant", "bee"]
    data.validation = {"cats": TextData(paths=[str(texts / "cat.jsonl")])}
    named = prepare(data, BytesTokenizer(), seed=0, cache=texts / "cache")
    assert list(named.validations) == ["cats"]
    assert named.report.train_tokens == sum(report.tokens for report in named.report.sources.values())
    assert named.validations["cats"].num_documents == 25
    assert named.identity() != prepared.identity()
    rows = validation_rows(build_objective(CausalConfig(), data), named, 32, 0)["cats"]
    batches = list(evaluation_batches(rows, 4, 0, 1))
    assert sum(batch.num_tokens or 0 for batch in batches) == named.validations["cats"].num_tokens


def test_a_tokenizer_learns_from_each_source_by_its_weight(texts: Path) -> None:
    data = mixture(texts, {"ant": 9.0, "bee": 1.0})
    small = BPETokenizer(vocab_size=300, train_bytes=2000)
    vocabulary = prepare(data, small, seed=0, cache=texts / "cache").tokenizer.inner.get_vocab()
    assert "Ġant" in vocabulary
    assert "Ġbee" in vocabulary


def test_bad_rows_of_sources_are_told_apart(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    bad = TextData(paths=[str(tmp_path / "bad.jsonl")], on_error=OnError.skip)
    data = mixture(texts, {"ant": None})
    data.sources["bad"] = bad
    report = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert (report.skipped, report.sources["bad"].skipped, report.sources["ant"].skipped) == (1, 1, 0)
