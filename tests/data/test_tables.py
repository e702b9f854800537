"""Tables and packed files as sources; rows that cannot be read, and how many may be."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.corpus import Document
from llmtrain.data.files import text_source
from llmtrain.data.prepare import prepare
from llmtrain.data.tables import table_documents
from llmtrain.schema.data import OnError, TextData
from llmtrain.schema.tokenizer import BytesTokenizer
from llmtrain.utils.errors import DataError

ROWS = ["plain", 'with, comma and "marks"', "two\nlines", "  blanks ", "你好, é \U0001f600", ""]


def read(path: Path, **settings) -> list[Document]:
    return list(text_source(TextData(paths=[str(path)], **settings)).train.documents())


def texts(path: Path, **settings) -> list[str]:
    documents = read(path, **settings)
    assert not [one.error for one in documents if one.error]
    return [one.text for one in documents]


def as_csv(rows: list[str], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "body", "note"])
    writer.writerows([str(i), row, "n"] for i, row in enumerate(rows))
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    try:
        return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("the program zstd is not there")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_csv(tmp_path: Path, packing: str) -> None:
    data = ("\ufeff" + as_csv(ROWS)).encode()
    path = tmp_path / f"a.csv{packing}"
    path.write_bytes({"": lambda d: d, ".gz": gzip.compress, ".zst": zstd}[packing](data))
    assert texts(path, text_key="body") == ROWS
    assert [one.where.rpartition(":")[2] for one in read(path, text_key="body")] == [*"234678"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\ufeff\0")), max_size=8))
@settings(max_examples=60)
def test_what_csv_writes_is_read(rows: list[str]) -> None:
    stream = io.BytesIO(as_csv(rows).encode())
    found = list(table_documents(stream, Path("a.csv"), "body"))
    assert [one.text for one in found] == rows


def test_tsv_has_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\nsay "hi\t1\n"never closed\t0\n')
    assert texts(path) == ['say "hi', '"never closed']


def test_long_fields(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "x" * 300_000 + "\n")
    assert len(texts(path)[0]) == 300_000
    assert csv.field_size_limit() == limit


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\ngood,1\ntoo,many,fields\nbad \xff byte,2\nfine,3\n")
    good, many, encoding, fine = read(path)
    assert (good.text, fine.text) == ("good", "fine")
    assert many.error is not None
    assert "3 fields where the first row has 2" in many.error.problems[0].what
    assert many.error.problems[0].where == f"{path}:3"
    assert many.row == "b'too,many,fields'"
    assert encoding.error is not None
    assert "not UTF-8" in encoding.error.problems[0].what
    with pytest.raises(DataError, match="no column 'body'") as caught:
        read(path, text_key="body")
    assert "text, label" in caught.value.problems[0].fix


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    rows = [f"row {i}: {ROWS[i % 6]}" for i in range(1000)]
    parquet.write_table(pyarrow.table({"id": list(range(1000)), "text": rows}), path, row_group_size=300)
    assert texts(path) == rows
    assert read(path)[999].where == f"{path}, row 1000"
    with pytest.raises(DataError, match="no column 'body'"):
        read(path, text_key="body")
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    documents = read(path)
    assert documents[1].error is not None
    assert (documents[0].text, documents[2].text) == ("a", "b")
    path.write_bytes(path.read_bytes()[:-20])
    (broken,) = read(path)
    assert broken.error is not None
    assert "Parquet file cannot be read" in broken.error.problems[0].what


def test_html_files_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>one</p>\n\n<p>two</p>")
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(b"<p>three</p>"))
    assert texts(tmp_path, documents="line") == ["<p>one</p>\n\n<p>two</p>", "<p>three</p>"]


def test_broken_zst(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"{i} " * 50}) + "\n" for i in range(5000))
    packed = zstd(rows.encode())
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed + zstd(b'{"text": "of a second frame"}\n'))
    assert texts(path)[-1] == "of a second frame"
    assert len(texts(path)) == 5001
    path.write_bytes(packed[:-9])
    *_, bad = read(path)
    assert bad.error is not None
    assert "zst file ends in the middle" in bad.error.problems[0].what
    path.write_bytes(b"no packed file")
    (bad,) = read(path)
    assert bad.error is not None
    assert "zst file is broken" in bad.error.problems[0].what


def test_a_budget_for_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": 1}\n[]\n{"text": "fine"}\n')
    data = TextData(paths=[str(path)], on_error=OnError.skip, max_errors=1)
    with pytest.raises(DataError, match=r"more than data\.max_errors=1 rows") as caught:
        prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
    assert caught.value.problems[0].where == f"{path}:3"
    written = Path(caught.value.problems[0].fix.split()[1].rstrip(";"))
    assert [json.loads(line)["row"] for line in written.read_text().splitlines()] == ['{"text": 1}', "[]"]
    data.max_errors = 2
    report = prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache").report
    assert report.skipped == 2
    assert report.bad_rows is not None
    assert len(Path(report.bad_rows).read_text().splitlines()) == 2
    data.max_errors = 0
    with pytest.raises(DataError, match=r"2 rows cannot be read, and data\.max_errors=0"):
        prepare(data, BytesTokenizer(), seed=0, cache=tmp_path / "cache")
