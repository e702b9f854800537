"""Cleaning on the way to the store: the same in one process and in several, stopped or not; counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.data import fill
from llmtrain.data.clean import corpus as corpus_module
from llmtrain.data.clean import processes
from llmtrain.data.clean.corpus import CleanedCorpus
from llmtrain.data.files import text_source
from llmtrain.data.prepare import Progress, prepare
from llmtrain.schema.clean import CleanConfig, NearDuplicatesConfig, Personal, QualityConfig, UnicodeForm
from llmtrain.schema.data import OnError, TextData
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import Stopped

CLEAN = CleanConfig(
    unicode=UnicodeForm.NFC,
    quality=QualityConfig(min_words=4, min_word_length=2.0, max_word_length=None),
    personal=[Personal.email],
    exact_duplicates=True,
)


@pytest.fixture
def data(tmp_path: Path) -> TextData:
    rows = [f"this is text number {i}, written by me{i}@example.org" for i in range(40)]
    rows += ["too short", "cafe\u0301 is a word of four", rows[0], "", "three words only"]
    lines = [json.dumps({"text": row}) for row in rows] + ["{broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    return TextData(paths=[str(tmp_path / "a.jsonl")], on_error=OnError.skip, clean=CLEAN)


def told(data: TextData) -> list[tuple]:
    assert data.clean is not None
    cleaned = CleanedCorpus(text_source(data).train, data.clean)
    return [
        (one.where, one.removed, one.counts, one.examples, bool(one.error), "" if one.error else one.text)
        for one in cleaned.documents()
    ]


def test_processes_give_what_one_gives(data: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = told(data)
    monkeypatch.setattr(corpus_module, "BATCH_DOCUMENTS", 4)
    monkeypatch.setattr(processes, "ALONE", 300)
    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    assert told(data) == alone
    removed = [(rule, where.rpartition(":")[2]) for where, rule, *_ in alone if rule]
    assert removed == [
        ("quality min_words", "41"),
        ("exact duplicate", "43"),
        ("quality min_words", "45"),
    ]
    assert alone[41][5] == "café is a word of four"
    assert alone[45][4]


def test_a_reader_that_stops_leaves_no_process(data: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BATCH_DOCUMENTS", 2)
    monkeypatch.setattr(processes, "ALONE", 1)
    monkeypatch.setattr(processes, "num_processes", lambda: 2)
    started: list[processes._Worker] = []
    make = processes._Worker.__init__

    def remember(self, cleaner) -> None:
        make(self, cleaner)
        started.append(self)

    monkeypatch.setattr(processes._Worker, "__init__", remember)
    assert data.clean is not None
    documents = CleanedCorpus(text_source(data).train, data.clean).documents()
    assert [next(documents).where for _ in range(9)]
    documents.close()
    assert len(started) == 2
    assert all(worker._process.poll() is not None for worker in started)


def test_what_is_removed_is_counted(data: TextData, tmp_path: Path) -> None:
    report = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert (report.read, report.documents, report.skipped) == (46, 41, 1)
    assert report.removed == {"quality min_words": 2, "exact duplicate": 1}
    assert report.empty == 1
    assert report.changed == {"personal email": 40, "unicode NFC": 1}
    assert len(report.examples["quality min_words"]) == 2
    assert len(report.examples["personal email"]) == fill.MAX_EXAMPLES
    assert "of " in report.examples["exact duplicate"][0]
    assert sum(report.lengths.values()) == report.documents
    assert report.round_trip == 1.0
    store = Path(report.path)
    written = json.loads(store.with_name(f"{store.name}.report.json").read_text())
    assert written["removed"] == report.removed
    assert report.bad_rows is not None
    (bad,) = map(json.loads, Path(report.bad_rows).read_text().splitlines())
    assert bad["where"].endswith("a.jsonl:46")
    assert bad["row"] == "{broken"
    assert "broken JSON" in bad["reason"]


def test_other_steps_are_another_store(data: TextData, tmp_path: Path) -> None:
    first = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report.cached
    data.clean = CleanConfig(unicode=UnicodeForm.NFC)
    second = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    data.clean = None
    third = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert len({first.path, second.path, third.path}) == 3


def test_a_stopped_preparation_goes_on(
    data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "whole").report
    monkeypatch.setattr(fill, "BATCH_CHARACTERS", 200)
    monkeypatch.setattr(fill, "JOURNAL_SECONDS", 0.0)
    calls = 0

    def stop(progress: Progress) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Stopped(143)

    monkeypatch.setattr("llmtrain.data.prepare._seldom", lambda report: report)
    with pytest.raises(Stopped):
        prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "parts", report=stop)
    again = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "parts").report
    assert again.plain() | {"path": "", "bad_rows": ""} == whole.plain() | {"path": "", "bad_rows": ""}
    for name in ("shard-00000.bin", "ends.npy", "bytes.npy", "bad_rows.jsonl", "manifest.json"):
        assert (Path(again.path) / name).read_bytes() == (Path(whole.path) / name).read_bytes()


def test_near_duplicates_in_a_preparation(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    story = " ".join(f"word{i}" for i in range(100))
    rows = [story, f"{story} the end", " ".join(f"other{i}" for i in range(100))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    clean = CleanConfig(near_duplicates=NearDuplicatesConfig())
    data = TextData(paths=[str(tmp_path / "a.jsonl")], clean=clean)
    report = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert report.removed == {"near duplicate": 1}
    assert "a.jsonl:1" in report.examples["near duplicate"][0]
