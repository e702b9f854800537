from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.data import builtin, files
from llmtrain.data.cache import HashMemo
from llmtrain.data.corpus import Document
from llmtrain.data.sources import SOURCES
from llmtrain.schema.data import (
    Documents,
    HuggingFaceData,
    OnError,
    PythonCodeData,
    PythonProseData,
    TextData,
)
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import file_sha256


def read(path: Path | str | list[str], **settings) -> list[Document]:
    paths = path if isinstance(path, list) else [str(path)]
    config = TextData(paths=paths, **settings)
    return list(SOURCES[TextData](config).train.documents())


def texts(path: Path | str | list[str], **settings) -> list[str]:
    documents = read(path, **settings)
    assert [document.error for document in documents if document.error] == []
    return [document.text for document in documents]


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("packed", [False, True])
def test_text_units(tmp_path: Path, packed: bool) -> None:
    content = b"\xef\xbb\xbfone\r\ntwo\r\n \r\n\r\nth\xc3\xa9ree\n\n"
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert texts(path) == ["one\ntwo\n \n\nthéree\n\n"]
    assert texts(path, documents=Documents.line) == ["one", "two", " ", "", "théree", ""]
    assert texts(path, documents=Documents.paragraph) == ["one\ntwo", "théree"]
    assert [d.where for d in read(path, documents=Documents.paragraph)] == [f"{path}:1", f"{path}:5"]


def test_blocks_never_cut_characters_or_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffé\r\n\U0001f600\r\r\n你好\r".encode())
    for size in range(1, 12):
        monkeypatch.setattr(files, "BLOCK", size)
        assert texts(path) == ["é\n\U0001f600\r\n你好\r"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress((jsonl({"text": "a\r\nb"}, {"text": ""}) + "\n" + jsonl({"text": "é"})).encode())
    )
    assert texts(path) == ["a\nb", "", "", "é"]
    assert [d.where for d in read(path)] == [f"{path}:{i}" for i in (1, 2, 3, 4)]


def test_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub/c.jsonl").write_text(jsonl({"text": "c"}))
    (tmp_path / "readme.md").write_text("no")
    assert texts(tmp_path) == ["a", "b", "c"]
    assert texts(str(tmp_path / "**/*.jsonl")) == ["c"]
    assert texts([str(tmp_path / "b.txt"), str(tmp_path / "?.txt")]) == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("row", "message", "fix"),
    [
        (b'{"text": "a"', "broken JSON: Expecting ',' delimiter at column 13", "repair"),
        (b'{"body": "a", "id": 3}', "no field 'text'", "data.text_key to one of its fields: body, id"),
        (b'{"text": 17}', "not text but int: 17", "data.on_error=skip"),
        (b'{"text": null}', "not text but NoneType: None", "data.on_error=skip"),
        (b"[1, 2]", "not an object with fields: [1, 2]", "one object a line"),
        (b'{"text": "a\xff"}', r"bytes that are not UTF-8: b'\xff", "iconv"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair", "data.on_error=skip"),
    ],
)
def test_bad_rows(tmp_path: Path, row: bytes, message: str, fix: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + row + b'\n{"text": "fine"}\n')
    good, bad, fine = read(path)
    assert (good.text, fine.text) == ("good", "fine")
    assert bad.error is not None
    problem = bad.error.problems[0]
    assert message in problem.what
    assert problem.where == f"{path}:2"
    assert fix in problem.fix


def test_bad_encoding_in_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nth\xe9ree\nfour\n")
    for size in (1 << 20, 3, 1):
        monkeypatch.setattr(files, "BLOCK", size)
        (document,) = read(path)
        with pytest.raises(DataError, match=r"not UTF-8: b'\\xe9") as caught:
            document.text  # noqa: B018
        assert caught.value.problems[0].where == f"{path}:3"
        (document,) = read(path, on_error=OnError.skip)
        assert document.error is not None
    lines = read(path, documents=Documents.line)
    assert [line.error is None for line in lines] == [True, True, False, True]
    assert lines[3].text == "four"
    (paragraph,) = read(path, documents=Documents.paragraph)
    assert paragraph.error is not None


def test_truncated_gzip(tmp_path: Path) -> None:
    lines = jsonl(*({"text": os.urandom(40).hex()} for _ in range(2000)))
    packed = gzip.compress(lines.encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    *good, bad = read(path)
    assert len(good) > 100
    assert bad.error is not None
    assert "ends in the middle" in bad.error.problems[0].what
    assert bad.error.problems[0].where == f"{path}:{len(good) + 1}"
    text = tmp_path / "a.txt.gz"
    text.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="ends in the middle"):
        read(text)[0].text  # noqa: B018
    text.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="gzip file is broken"):
        read(text)[0].text  # noqa: B018


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(DataError, match="there is no file") as caught:
        read(tmp_path / "trian.txt")
    assert caught.value.problems[0].where == "data.paths"
    assert f"did you mean {tmp_path / 'train.txt'}?" in str(caught.value)
    with pytest.raises(DataError, match="there is no file") as caught:
        read(tmp_path / "zzz")
    assert "there is: train.txt" in str(caught.value)
    with pytest.raises(DataError) as caught:
        read(tmp_path / "no" / "where.txt")
    assert "does not exist either" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no text file matches"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="no text file matches"):
        read(str(tmp_path / "*.jsonl"))
    (tmp_path / "a.pdf").write_text("a")
    with pytest.raises(DataError, match="kind of file is not known"):
        read(tmp_path / "a.pdf")
    with pytest.raises(DataError, match="no text is named"):
        read([])


def test_validation_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    config = TextData(paths=[str(tmp_path / "a.txt")], validation_paths=[str(tmp_path / "b.txt")])
    source = SOURCES[TextData](config)
    assert source.validation is not None
    assert [d.text for d in source.validation.documents()] == ["b"]


def test_fingerprints(tmp_path: Path) -> None:
    def fingerprint(name: str, **settings) -> str:
        config = TextData(paths=[str(tmp_path / name)], **settings)
        return SOURCES[TextData](config).train.fingerprint(file_sha256)

    (tmp_path / "a.txt").write_text("same")
    (tmp_path / "b.txt").write_text("same")
    (tmp_path / "c.txt").write_text("other")
    assert fingerprint("a.txt") == fingerprint("b.txt") == fingerprint("a.txt", text_key="body")
    assert fingerprint("a.txt") != fingerprint("c.txt")
    assert fingerprint("a.txt") != fingerprint("a.txt", documents=Documents.line)


def test_hashes_of_big_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * (1 << 20))
    os.utime(path, (1e9, 1e9))
    memo = HashMemo(tmp_path / "cache")
    expected = file_sha256(path)
    assert memo(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr("llmtrain.data.cache.file_sha256", lambda path: pytest.fail("hashed again"))
        assert memo(path) == expected
    path.write_bytes(b"y" * (1 << 20))
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert memo(path) == file_sha256(path) != expected


def test_python_code() -> None:
    corpus = SOURCES[PythonCodeData](PythonCodeData()).train
    documents = {document.where: document.text for document in corpus.documents()}
    size = sum(map(len, documents.values()))
    assert 8e6 < size < 16e6
    assert "def loads(" in documents["json/__init__.py"]
    assert not any(name.startswith(("test/", "site-packages/")) for name in documents)
    assert list(documents) == sorted(documents)
    assert corpus.fingerprint(file_sha256) == corpus.fingerprint(file_sha256)


def test_python_prose() -> None:
    corpus = SOURCES[PythonProseData](PythonProseData()).train
    documents = {document.where: document.text for document in corpus.documents()}
    assert 1e6 < sum(map(len, documents.values())) < 4e6
    assert "General aliases:" not in documents["json/__init__.py"]
    assert documents["json/__init__.py"].startswith("JSON (JavaScript Object Notation)")
    assert ">>>" not in "".join(documents.values())
    assert any(name.startswith("pydoc_data/topics.py: ") for name in documents)


def test_a_stripped_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="without the source of its standard library"):
        next(SOURCES[PythonCodeData](PythonCodeData()).train.documents())
    with pytest.raises(DataError, match=r"without the topics of help\(\)"):
        next(SOURCES[PythonProseData](PythonProseData()).train.documents())


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "set"
    folder.mkdir()
    table = pyarrow.table({"text": ["one", "two\r\n", ""], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    pyarrow.parquet.write_table(table.slice(0, 1), folder / "validation.parquet")
    return folder


def test_hugging_face_folder(hugging_face: Path) -> None:
    config = HuggingFaceData(name=str(hugging_face), validation_split="validation")
    source = SOURCES[HuggingFaceData](config)
    assert [d.text for d in source.train.documents()] == ["one", "two\n", ""]
    assert source.validation is not None
    assert [d.text for d in source.validation.documents()] == ["one"]
    before = source.train.fingerprint(file_sha256)
    assert before != source.validation.fingerprint(file_sha256)
    (hugging_face / "train.parquet").write_bytes((hugging_face / "validation.parquet").read_bytes())
    assert source.train.fingerprint(file_sha256) != before

    wrong = SOURCES[HuggingFaceData](HuggingFaceData(name=str(hugging_face), text_key="body")).train
    first = next(wrong.documents())
    assert first.error is not None
    assert "one of its fields: text, n" in str(first.error)
    missing = SOURCES[HuggingFaceData](HuggingFaceData(name=str(hugging_face), split="test")).train
    with pytest.raises(DataError, match="cannot be read"):
        next(missing.documents())


def test_hugging_face_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'no/such-set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    corpus = SOURCES[HuggingFaceData](HuggingFaceData(name="no/such-set")).train
    with pytest.raises(DataError, match="the hub cannot be reached: Couldn't reach") as caught:
        corpus.fingerprint(file_sha256)
    assert caught.value.problems[0].where == "data.name=no/such-set:train"


def test_hugging_face_offline(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    code = (
        "from llmtrain.data.sources import SOURCES\n"
        "from llmtrain.schema.data import HuggingFaceData\n"
        "source = SOURCES[HuggingFaceData](HuggingFaceData(name='no/such-set'))\n"
        "import sys; assert 'datasets' not in sys.modules\n"
        "try:\n    source.train.fingerprint(None)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.startswith("DataError error: offline mode is on"), result.stdout + result.stderr
    assert "HF_HUB_OFFLINE" in result.stdout
    with pytest.raises(DataError, match="no data set is named"):
        SOURCES[HuggingFaceData](HuggingFaceData())
