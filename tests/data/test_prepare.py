from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llmtrain.data import fill
from llmtrain.data import prepare as prepare_module
from llmtrain.data import writer as writer_module
from llmtrain.data.corpus import Source
from llmtrain.data.prepare import Progress, prepare
from llmtrain.data.rows import StreamRows
from llmtrain.data.show import render_rows
from llmtrain.data.store import TokenStore, whole
from llmtrain.data.tokenizer_build import TOKENIZERS, bytes_tokenizer
from llmtrain.data.writer import StoreWriter
from llmtrain.schema.data import Documents, OnError, TextData
from llmtrain.schema.tokenizer import BPETokenizer, BytesTokenizer, CharactersTokenizer
from llmtrain.utils.errors import DataError, DiskFullError, Stopped
from llmtrain.utils.io import read_json
from tests.data import slow_prepare

SCRIPT = slow_prepare.__file__


@pytest.fixture(autouse=True)
def _no_lasting_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`slow_prepare.run` makes batches small in this process; put everything back after each test."""
    for module, name in [
        (fill, "BATCH_CHARACTERS"),
        (fill, "JOURNAL_SECONDS"),
        (writer_module, "SHARD_TOKENS"),
    ]:
        monkeypatch.setattr(module, name, getattr(module, name))


def write(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def store_files(path: str | Path) -> dict[str, bytes]:
    """Content of every file of a store."""
    return {file.name: file.read_bytes() for file in sorted(Path(path).iterdir()) if file.is_file()}


def test_prepare_and_find_it_again(tmp_path: Path) -> None:
    texts = [f"This is document {i}: ünïcode \U0001f600. " * 4 for i in range(60)]
    data = TextData(paths=[write(tmp_path / "a.jsonl", *texts, "")], validation_fraction=0.1)
    tokenizer = BPETokenizer(vocab_size=300)
    prepared = prepare(data, tokenizer, seed=1, cache=tmp_path / "cache")
    report = prepared.report
    assert (report.cached, report.documents, report.empty, report.skipped) == (False, 60, 1, 0)
    assert report.bytes == sum(len(text.encode()) for text in texts)
    assert report.tokens == report.train_tokens + report.validation_tokens
    assert report.bytes_per_token == report.bytes / report.tokens
    assert prepared.validation is not None
    assert prepared.train.num_bytes + prepared.validation.num_bytes == report.bytes
    assert report.warnings == [f"{tmp_path / 'a.jsonl'}: 1 empty documents were left out"]

    again = prepare(data, tokenizer, seed=1, cache=tmp_path / "cache")
    assert again.report.cached
    assert again.tokenizer.sha256 == prepared.tokenizer.sha256
    assert again.train.key == prepared.train.key

    data.validation_fraction = 0.2
    other = prepare(data, tokenizer, seed=2, cache=tmp_path / "cache")
    assert other.report.path == report.path
    assert other.train.key != prepared.train.key

    given = prepare(data, prepared.tokenizer, seed=1, cache=tmp_path / "cache")
    assert given.report.cached


def test_the_cache_follows_content_not_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    data = TextData(paths=[write(tmp_path / "a.jsonl", "one", "two")])
    first = prepare(data, CharactersTokenizer(), seed=0)
    assert first.report.path.startswith(str(tmp_path / "cache"))
    Path(data.paths[0]).rename(tmp_path / "b.jsonl")
    data.paths = [str(tmp_path / "b.jsonl")]
    assert prepare(data, CharactersTokenizer(), seed=0).report.cached
    assert not prepare(data, BytesTokenizer(), seed=0).report.cached
    write(tmp_path / "b.jsonl", "one", "three")
    changed = prepare(data, CharactersTokenizer(), seed=0)
    assert not changed.report.cached
    assert changed.tokenizer.vocab_size == first.tokenizer.vocab_size + 1


def test_a_validation_source_of_its_own(tmp_path: Path) -> None:
    data = TextData(
        paths=[write(tmp_path / "a.jsonl", "abc", "cab")],
        validation_paths=[write(tmp_path / "b.jsonl", "abz")],
        max_tokens=6,
    )
    prepared = prepare(data, CharactersTokenizer(), seed=0, cache=tmp_path / "cache")
    assert prepared.validation is not None
    assert prepared.train.num_tokens == 6
    assert prepared.validation.num_tokens == 4
    assert prepared.tokenizer.decode(prepared.validation.read(0, 4)) == "ab\ufffd"
    assert "1 of 4 tokens are unknown" in prepared.report.warnings[0]


def test_characters_need_no_more_text_than_max_tokens(tmp_path: Path) -> None:
    data = TextData(paths=[write(tmp_path / "a.jsonl", "abcabc", "xyz")], max_tokens=5)
    prepared = prepare(data, CharactersTokenizer(), seed=0, cache=tmp_path / "cache")
    assert prepared.tokenizer.vocab_size == 5
    assert prepared.report.tokens == 5


def test_bad_rows_stop_or_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\n\n{"text": "fine"}\nnot json\n')
    data = TextData(paths=[str(path)], validation_fraction=0)
    for tokenizer in (BytesTokenizer(), CharactersTokenizer(), BPETokenizer()):
        with pytest.raises(DataError) as caught:
            prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
        assert caught.value.problems[0].where == f"{path}:2"
    data.on_error = OnError.skip
    prepared = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
    report = prepared.report
    assert (report.documents, report.skipped, report.empty) == (2, 2, 1)
    assert "2 unreadable rows were skipped" in report.warnings[0]
    assert f"{path}:2" in report.warnings[0]
    assert (
        prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report.warnings == report.warnings
    )


def test_an_empty_data_set_is_an_error(tmp_path: Path) -> None:
    for content in ("", "\n \n", '{"text": ""}\n'):
        (tmp_path / "a.jsonl").write_text(content)
        data = TextData(paths=[str(tmp_path / "a.jsonl")])
        with pytest.raises(DataError, match="the data set is empty"):
            prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")


def test_a_damaged_store_is_made_again(tmp_path: Path) -> None:
    data = TextData(paths=[write(tmp_path / "a.jsonl", "one", "two")])
    path = Path(prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report.path)
    files = store_files(path)
    (path / "shard-00000.bin").write_bytes(b"12")
    again = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
    assert not again.report.cached
    assert store_files(path) == files


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = TextData(paths=[write(tmp_path / "a.jsonl", "one", "two")])
    with monkeypatch.context() as patch:
        patch.setattr(writer_module.StoreWriter, "_sync", staticmethod(full))
        with pytest.raises(DiskFullError, match="disk is full"):
            prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
    assert prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report.documents == 2


@pytest.mark.parametrize("kill", [signal.SIGKILL, None])
def test_killed_and_continued_gives_the_same_files(tmp_path: Path, kill: signal.Signals | None) -> None:
    expected = slow_prepare.run(tmp_path / "whole", 0.0)
    counts = expected.report
    assert (counts.skipped, counts.empty, counts.documents) == (6, 6, 288)
    cache = tmp_path / "killed"
    continued = 0
    for tokens in (3000, 20_000):
        process = subprocess.Popen([sys.executable, SCRIPT, str(cache), "0.004"])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            journals = list(cache.glob("stores/*.partial/journal.json"))
            if journals and read_json(journals[0])["position"]["tokens"] > tokens:
                break
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.send_signal(kill or signal.SIGKILL)
        process.wait()
        (partial,) = cache.glob("stores/*.partial")
        with open(sorted(partial.glob("shard-*.bin"))[-1], "ab") as file:  # a tail that no journal knows
            file.write(b"garbage")
        if kill is None:
            (partial / "journal.json").unlink()  # nothing can be trusted: it starts anew
        continued += 1
    assert continued == 2
    result = slow_prepare.run(cache, 0.0)
    assert not result.report.cached
    assert store_files(result.report.path) == store_files(expected.report.path)
    result.train.store.verify()
    assert [p.name for p in cache.glob("stores/*.partial")] == []


@pytest.mark.parametrize("tokens", [1, 9, 10, 11, 20])
def test_what_a_kill_leaves_behind_is_cut_off(tmp_path: Path, tokens: int) -> None:
    def writer(path: Path) -> StoreWriter:
        return StoreWriter(path, bytes_tokenizer(BytesTokenizer()), {}, shard_tokens=10)

    def append(to: StoreWriter, start: int, stop: int) -> None:
        ends = np.array([stop], dtype=np.int64)
        to.append(np.arange(start, stop, dtype=np.uint16), ends, ends)

    with writer(tmp_path / "whole.partial") as whole_one:
        append(whole_one, 0, tokens)
        append(whole_one, tokens, 37)
        whole_one.publish(tmp_path / "whole")

    path = tmp_path / "killed.partial"
    with writer(path) as killed:
        append(killed, 0, tokens)
        killed.commit()
        append(killed, tokens, 33)
    for shard in path.glob("shard-*.bin"):
        with open(shard, "ab") as file:
            file.write(b"garbage")
    (path / ".journal.json.123.tmp").write_bytes(b"{")  # killed inside an atomic write
    with writer(path) as continued:
        assert continued.position.tokens == tokens
        append(continued, tokens, 37)
        continued.publish(tmp_path / "killed")
    assert store_files(tmp_path / "killed") == store_files(tmp_path / "whole")


def test_killed_while_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slow_prepare.run(tmp_path / "whole", 0.0)

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writer_module.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            slow_prepare.run(tmp_path / "killed", 0.0)
    assert [path.name for path in tmp_path.glob("killed/stores/*/manifest.json")] == ["manifest.json"]
    result = slow_prepare.run(tmp_path / "killed", 0.0)
    assert not result.report.cached
    assert store_files(result.report.path) == store_files(expected.report.path)


def test_the_journal_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slow_prepare.run(tmp_path / "whole", 0.0)
    calls = 0

    def poll() -> None:
        nonlocal calls
        calls += 1
        if calls == 60:
            raise Stopped(143)

    with pytest.raises(Stopped):
        slow_prepare.run(tmp_path / "stopped", 0.0, poll=poll)
    (journal,) = (tmp_path / "stopped").glob("stores/*.partial/journal.json")
    done = read_json(journal)["position"]["tokens"]
    assert done > 0
    written = 0
    append = writer_module.StoreWriter.append

    def counting(self, tokens, ends, sizes) -> None:
        nonlocal written
        written += len(tokens)
        append(self, tokens, ends, sizes)

    monkeypatch.setattr(writer_module.StoreWriter, "append", counting)
    result = slow_prepare.run(tmp_path / "stopped", 0.0)
    assert written == expected.report.tokens - done
    assert store_files(result.report.path) == store_files(expected.report.path)


def test_many_processes_prepare_once(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, str(tmp_path / "cache"), "0.001"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(cached for cached, _ in answers) == ["False", "True", "True", "True"]
    assert len({path for _, path in answers}) == 1


def test_without_a_network_the_version_seen_last_is_taken(tmp_path: Path) -> None:
    class Remote(slow_prepare.SlowCorpus):
        remote_key = "some-hub"
        online = True

        def fingerprint(self, hash_file) -> str:
            if not self.online:
                raise DataError("the hub cannot be reached")
            return super().fingerprint(hash_file)

    builders = {slow_prepare.SlowData: lambda config: Source(Remote(0.0)), **TOKENIZERS}
    data = slow_prepare.SlowData(on_error=OnError.skip)

    def run(cache: Path):
        return prepare(data, BytesTokenizer(), seed=0, builders=builders, cache=cache)

    first = run(tmp_path / "cache")
    Remote.online = False
    again = run(tmp_path / "cache")
    assert again.report.cached
    assert again.report.path == first.report.path
    assert "the version that was seen last is taken" in again.report.warnings[0]
    with pytest.raises(DataError, match="the hub cannot be reached"):
        run(tmp_path / "elsewhere")


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "_seldom", lambda report: report)
    seen: list[Progress] = []
    data = TextData(paths=[write(tmp_path / "a.jsonl", *("word " * 50 for _ in range(50)))])
    prepare(data, BPETokenizer(vocab_size=260), seed=0, cache=tmp_path / "cache", report=seen.append)
    assert {progress.stage for progress in seen} == {"tokenizer", "tokens"}
    assert seen[-1].fraction == 1.0
    assert seen[-1].text_bytes == 12_500


def test_no_torch_is_needed() -> None:
    code = "import sys, llmtrain.data.prepare; assert 'torch' not in sys.modules, 'torch'"
    code += "; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_huge_text_file_is_never_held(tmp_path: Path) -> None:
    random.seed(0)
    words = " ".join(f"w{random.randrange(10_000)}" for _ in range(170_000)) + "\n"
    with open(tmp_path / "big.txt", "w", encoding="utf-8") as file:
        for _ in range(120):
            file.write(words)
    size = (tmp_path / "big.txt").stat().st_size
    assert size > 110e6
    code = (
        "import sys, resource\n"
        "from pathlib import Path\n"
        "from llmtrain.data.prepare import prepare\n"
        "from llmtrain.schema.data import TextData\n"
        "from llmtrain.schema.tokenizer import BytesTokenizer\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = TextData(paths=[sys.argv[1]])\n"
        "prepared = prepare(data, BytesTokenizer(), seed=0, cache=Path(sys.argv[2]))\n"
        "print(prepared.report.tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "big.txt"), str(tmp_path / "cache")]
    tokens, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(tokens) == size + 1
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(kilobytes) * unit < 60e6


def test_rows_are_shown(tmp_path: Path) -> None:
    data = TextData(paths=[write(tmp_path / "a.jsonl", "first", "second one", "3")], validation_fraction=0)
    prepared = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
    rows = StreamRows(prepared.train, sequence_length=12, seed=0, shuffle=False, isolate_documents=True)
    text = render_rows(prepared.tokenizer, rows, 2)
    assert "document 0, tokens 0-5, labels 5: 'first'|end||no label|" in text
    assert "document 1, tokens 6-11, labels 6: 'second'|cut|" in text
    assert "document 0, tokens 0-4, labels 4: ' one'|end||no label|" in text
    assert "document 1, tokens 5-6, labels 1: '3'|end||no label|" in text
    assert "padding, tokens 7-11" in text
    assert "real tokens in these rows: 19 of 24 (79.2 %)" in text


def test_tinyshakespeare_is_split_as_nanogpt_does(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "text/tinyshakespeare/input.txt"
    data = TextData(paths=[str(path)], validation_fraction=0.1)
    prepared = prepare(data, CharactersTokenizer(), seed=1337, cache=tmp_path)
    text = path.read_text(encoding="utf-8")
    assert prepared.tokenizer.vocab_size == 65 + 2  # the unknown character and the end of text
    assert prepared.tokenizer.decode(range(65)) == "".join(sorted(set(text)))
    assert prepared.validation is not None
    assert (prepared.train.num_tokens, prepared.validation.num_tokens) == (1_003_854, 111_540)
    assert prepared.tokenizer.decode(prepared.validation.read(1_003_854, 1_115_394)) == text[1_003_854:]
    assert prepared.validation.num_bytes == 111_540


def test_wikitext(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "text/wikitext-2/valid.txt"
    data = TextData(paths=[str(path)], documents=Documents.line)
    prepared = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path)
    lines = path.read_text(encoding="utf-8").split("\n")
    report = prepared.report
    assert report.documents == sum(1 for line in lines if line.strip())
    assert report.documents + report.empty == 3760
    assert report.bytes == sum(len(line.encode()) for line in lines if line.strip())


def test_novels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "text/english-novels"
    data = TextData(paths=[str(folder / "valid.jsonl.gz")], validation_fraction=0)
    prepared = prepare(data, BPETokenizer(vocab_size=1000), seed=0, cache=tmp_path)
    assert prepared.report.documents == 2
    store = TokenStore.open(prepared.report.path)
    starts, ends = whole(store).spans
    texts = [prepared.tokenizer.decode(store.read(a, b)) for a, b in zip(starts, ends, strict=True)]
    assert [len(text.encode()) for text in texts] == store.bytes.tolist()
    library = prepared.tokenizer.inner
    assert library.encode(texts[0], add_special_tokens=False).ids == store.read(0, ends[0] - 1).tolist()


def test_a_tokenizer_that_is_there_already(tmp_path: Path) -> None:
    data = TextData(paths=[write(tmp_path / "a.jsonl", "one")])
    prepared = prepare(data, bytes_tokenizer(BytesTokenizer()), seed=0, cache=tmp_path / "cache")
    assert prepared.report.tokens == 4
