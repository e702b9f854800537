"""Reading rows of files: every layout, every fault with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.schema.data import OnError
from llmtrain.schema.task import FileFormat, TaskConfig
from llmtrain.task.files import (
    Faults,
    Row,
    decoded,
    format_of,
    holds_plain_text,
    read_json,
    read_lines,
    read_rows,
    read_texts,
    task_paths,
)
from llmtrain.utils.errors import DataError

COLUMNS = {"text_column": "text", "label_column": "label"}


def rows(
    path: Path, columns: Mapping[str, str] = COLUMNS, skip: Faults | None = None, **changes: Any
) -> list[Row]:
    layout = {"layout": format_of(path, FileFormat.auto), "header": True, "quoting": True}
    return list(read_rows(path, columns, skip or Faults(OnError.fail), **(layout | changes)))


def fault(path: Path, columns: Mapping[str, str] = COLUMNS, **changes: Any) -> tuple[str, str, str]:
    """What is wrong, where, and what to do."""
    with pytest.raises(DataError) as caught:
        rows(path, columns, **changes)
    (problem,) = caught.value.problems
    return problem.what, problem.where, problem.fix


def pairs(found: list[Row]) -> list[tuple[Any, Any]]:
    return [(row.values["text_column"], row.values["label_column"]) for row in found]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_every_layout(tmp_path: Path, packed: bool, ends: str, bom: str) -> None:
    contents = {
        "a.tsv": ["id\ttext\tlabel", '1\ta "b" c\tx', "", "2\té\ty"],
        "a.csv": ["id,text,label", '1,"a ""b"" c",x', "", "2,é,y"],
        "a.jsonl": ['{"label": "x", "text": "a \\"b\\" c"}', "", '{"text": "é", "label": "y"}'],
    }
    for name, lines in contents.items():
        data = (bom + ends.join(lines)).encode()  # the last line has no end
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data) if packed else data)
        found = rows(path)
        assert pairs(found) == [('a "b" c', "x"), ("é", "y")], name
        start = 1 if name == "a.jsonl" else 2
        assert [row.where for row in found] == [f"{path}:{start}", f"{path}:{start + 2}"]


def test_without_header_columns_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo one.\n")
    columns = {"text_column": "3", "label_column": "1"}
    assert pairs(rows(path, columns, header=False)) == [("One.", "1"), ("Two one.", "0")]
    what, where, fix = fault(path, {"text_column": "4"}, header=False)
    assert (what, where) == ("there is no column '4' without a header", f"{path}:1")
    assert fix == "set task.text_column to a number from 0 to 3, or task.header=true"
    assert "no column 'text' without a header" in fault(path, header=False)[0]


def test_without_quoting_quotes_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"One\t1\nTwo" three\t0\n""\t1\n')
    assert pairs(rows(path, quoting=False)) == [('"One', "1"), ('Two" three', "0"), ('""', "1")]
    what, where, fix = fault(path)
    assert "cannot be parted into fields" in what
    assert where == f"{path}:2"
    assert "task.quoting=false" in fix


def test_an_open_quote_is_one_fault_with_its_extent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\na,1\n"b,2\nc,3\n')
    what, where, _ = fault(path)
    assert where == f"{path}:3"
    assert what.endswith("(up to line 4)")
    faults = Faults(OnError.skip)
    assert pairs(rows(path, skip=faults)) == [("a", "1")]
    assert len(faults.noted) == 1


def test_line_ends_inside_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\r\n"one\r\ntwo",1\r\nthree,2\r\n')
    found = rows(path)
    assert pairs(found) == [("one\ntwo", "1"), ("three", "2")]
    assert [row.where for row in found] == [f"{path}:2", f"{path}:4"]


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")), min_size=2, max_size=2))
)
@settings(deadline=None, max_examples=50)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, table: list) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["text", "label"], *table])
    path = write(tmp_path_factory.getbasetemp() / "round.csv", buffer.getvalue())
    assert pairs(rows(path)) == [tuple(fields) for fields in table]


def test_a_missing_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "index\tsentence\tlabel\n0\tgood\t1\n")
    what, where, fix = fault(path, {"text_column": "sentense"})
    assert (what, where) == ("there is no column 'sentense'", f"{path}:1")
    assert fix == (
        "did you mean 'sentence'? set task.text_column to one of: index, sentence, label, "
        "or task.header=false if this line is an example"
    )
    assert "did you mean" not in fault(path, {"text_column": "zzz"})[2]
    twice = write(tmp_path / "b.csv", "text, label ,label\na,1,2\n")
    assert fault(twice)[0] == "the header names 'label' twice"


def test_a_missing_field_in_json(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": 1}, {"text": "b", "lable": 2}, ["c", 3], {"text": "d", "label": None}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    what, where, fix = fault(path)
    assert (what, where) == ("the row has no field 'label'", f"{path}:2")
    assert fix.startswith("did you mean 'lable'? set task.label_column to one of: text, lable; repair")
    faults = Faults(OnError.skip)
    assert pairs(rows(path, skip=faults)) == [("a", 1), ("d", None)]
    assert faults.noted == [
        f"{path}:2: the row has no field 'label'",
        f"{path}:3: the row is not an object with fields: ['c', 3]",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "broken JSON: Expecting ',' delimiter at column 13"),
        (b'{"text": "a\xff"}', r"bytes that are not UTF-8: b'\xff"),
        (b'{"label": ' + b"1" * 5000 + b"}", "broken JSON: Exceeds the limit"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
    ],
)
def test_broken_json_lines(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(
        tmp_path / "a.jsonl", b'{"text": "a", "label": 1}\n' + line + b'\n{"text": "b", "label": 2}\n'
    )
    what, where, fix = fault(path)
    assert message in what
    assert where == f"{path}:2"
    assert "task.on_error=skip" in fix
    faults = Faults(OnError.skip)
    assert pairs(rows(path, skip=faults)) == [("a", 1), ("b", 2)]
    assert len(faults.noted) == 1
    assert faults.noted[0].startswith(f"{path}:2: ")


def test_wrong_number_of_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t1\nb\nc\t2\t3\nd\t4\n")
    what, where, fix = fault(path)
    assert (what, where) == ("1 fields where the header has 2: ['b']", f"{path}:3")
    assert "task.quoting=false" in fix
    assert "quoting" not in fault(path, quoting=False)[2]
    faults = Faults(OnError.skip)
    assert pairs(rows(path, skip=faults)) == [("a", "1"), ("d", "4")]
    assert [note.partition(": ")[0] for note in faults.noted] == [f"{path}:3", f"{path}:4"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert fault(write(tmp_path / "a.tsv", ""))[:2] == ("the file is empty", str(tmp_path / "a.tsv"))
    assert rows(write(tmp_path / "b.tsv", "\ufeff\n\n")) == []
    packed = gzip.compress(
        b"text\tlabel\n" + b"".join(os.urandom(20).hex().encode() + b"\t1\n" for _ in range(2000))
    )
    cut = write(tmp_path / "cut.tsv.gz", packed[: len(packed) // 2])
    assert "ends in the middle" in fault(cut)[0]
    faults = Faults(OnError.skip)
    good = rows(cut, skip=faults)
    assert len(good) > 100
    assert faults.noted[0].startswith(f"{cut}:{len(good) + 2}: ")
    assert "gzip file is broken" in fault(write(tmp_path / "no.tsv.gz", "text\tlabel\n"))[0]
    (tmp_path / "folder.tsv").mkdir()
    assert "cannot be opened: Is a directory" in fault(tmp_path / "folder.tsv")[0]


def test_lines_of_a_stream() -> None:
    """Standard input, say: lines from anywhere, with their numbers."""
    stream = enumerate(io.BytesIO(b"a\r\nb\xff\nc"), 1)
    faults = Faults(OnError.skip)
    assert list(decoded(stream, "stdin", faults)) == [("stdin:1", "a"), ("stdin:3", "c")]
    assert faults.noted == [r"stdin:2: bytes that are not UTF-8: b'\xff\n'"]


def test_plain_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\ttwo\n\nthree\tfour\n")
    found = list(read_texts(path, ["text_column"], Faults(OnError.fail)))
    assert [row.values["text_column"] for row in found] == ["one\ttwo", "", "three\tfour"]
    faults = Faults(OnError.skip)
    found = list(read_texts(path, ["text_column", "pair_column"], faults))
    assert [dict(row.values) for row in found] == [
        {"text_column": "one", "pair_column": "two"},
        {"text_column": "three", "pair_column": "four"},
    ]
    assert faults.noted == [f"{path}:2: 1 texts where 2 are needed: ''"]
    assert next(read_lines(path, faults)) == (f"{path}:1", "one\ttwo")


def test_formats_by_name() -> None:
    auto = FileFormat.auto
    for name, expected in {
        "a.tsv": "tsv",
        "a.TXT.gz": "tsv",
        "a.csv.gz": "csv",
        "a.b.jsonl": "jsonl",
    }.items():
        assert format_of(Path(name), auto) == expected
    assert format_of(Path("a.data"), FileFormat.csv) == "csv"
    for name in ("a.data", "a", "a.json"):
        with pytest.raises(DataError, match="kind of file is not known"):
            format_of(Path(name), auto)
    assert holds_plain_text(Path("a.txt.gz"), FileFormat.tsv)
    assert holds_plain_text(Path("/dev/stdin"), auto)
    assert not holds_plain_text(Path("/dev/stdin"), FileFormat.jsonl)
    assert not holds_plain_text(Path("a.tsv"), auto)


def test_json_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\ufeff{"data":\n [1, 2]}')
    assert read_json(path) == {"data": [1, 2]}
    packed = write(tmp_path / "a.json.gz", gzip.compress(path.read_bytes()))
    assert read_json(packed) == {"data": [1, 2]}
    for content, message, place in (
        (b'{"data":\n [1,, 2]}', "at line 2, column 5", ""),
        (b'{"data":\n "\xe9"}', "not UTF-8", ":2"),
    ):
        write(path, content)
        with pytest.raises(DataError, match=message) as caught:
            read_json(path)
        assert caught.value.problems[0].where == f"{path}{place}"
    write(packed, packed.read_bytes()[:-9])
    with pytest.raises(DataError, match="ends in the middle"):
        read_json(packed)


def test_paths_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    train = write(folder / "train.tsv", "a")
    task = TaskConfig(folder=str(folder))
    assert task_paths(task, ["train.tsv", str(train)]) == [train, train]

    def problem(task: TaskConfig, names: list[str]) -> tuple[str, str, str]:
        with pytest.raises(DataError) as caught:
            task_paths(task, names, "task.validation_paths")
        (one,) = caught.value.problems
        return one.what, one.where, one.fix

    assert problem(task, []) == (
        "no file is named",
        "task.validation_paths",
        "set task.validation_paths=[train.tsv]",
    )
    what, where, fix = problem(task, ["trian.tsv"])
    assert (what, where) == (f"there is no file {folder / 'trian.tsv'}", "task.validation_paths")
    assert fix == f"did you mean {train}?"
    assert f"{folder} is a folder" in problem(TaskConfig(), [str(folder)])[0]
    what, where, fix = problem(TaskConfig(folder=str(tmp_path / "SST2")), ["train.tsv"])
    assert (what, where) == (f"there is no such folder: {tmp_path / 'SST2'}", "task.folder")
    assert fix == f"did you mean {folder}?"
    assert "is not a folder" in problem(TaskConfig(folder=str(train)), ["train.tsv"])[0]
    monkeypatch.chdir(tmp_path)
    assert "set task.folder where train.tsv lies" in problem(TaskConfig(), ["train.tsv"])[2]
    assert task_paths(TaskConfig(), ["SST-2/train.tsv"]) == [Path("SST-2/train.tsv")]
