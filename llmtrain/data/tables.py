"""Documents in the columns of tables: .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llmtrain.data.corpus import Document, row_text, shorten
from llmtrain.data.lines import Unreadable, numbered_lines, repair
from llmtrain.utils.errors import DataError

SECTION = "data"
"""Of the config, for messages."""

ROWS = 256
"""Rows of a Parquet file that are in memory at once."""

MOST_LINES = 100_000
"""Lines of a single row, at most: beyond that a quotation mark was never closed."""


def table_documents(stream: BinaryIO, path: Path, text_key: str) -> Iterator[Document]:
    """Documents of an open CSV or TSV file whose first row names the columns.

    CSV as in RFC 4180: a field in quotation marks may hold commas, line ends and doubled marks. TSV: a
    field is what stands between tabs, quotation marks are characters like others.

    Args:
        stream: its bytes, unpacked.
        path: of the file; its name says which of the two it is, and goes into messages.
        text_key: column that holds the text.

    Raises:
        DataError: there is no such column; no other row could be read either.
    """
    tabs = ".tsv" in path.suffixes[-2:]
    lines = _Lines(stream, str(path))
    rows: Any = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    header: list[str] | None = None
    while True:
        lines.start()
        try:
            with _long_fields():
                row = next(rows, None)
        except csv.Error as error:
            where = f"{path}:{lines.first}"
            broken = DataError(f"not a row of a table: {error}", where, repair(SECTION))
            yield Document(where, error=broken, row=shorten(lines.text, 200))
            continue
        except Unreadable as unreadable:
            yield Document(str(path), error=unreadable.error)
            return
        if row is None:
            return
        if header is None:
            header = row
            _require_column(header, text_key, f"{path}:{lines.first}")
        elif row:
            yield _document(row, header, text_key, f"{path}:{lines.first}")


class _Lines:
    """Decoded lines of a stream, with the number of the first one of the present row."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._lines = numbered_lines(stream, name, SECTION)
        self.first = 0
        self.text = ""
        self._fresh = True
        self._taken = 0

    def start(self) -> None:
        """A new row begins with the next line."""
        self._fresh, self._taken = True, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        text = line.decode(errors="surrogateescape")  # the row with bad bytes is told, not its neighbours
        if self._fresh:
            self.first, self.text, self._fresh = number, text, False
        self._taken += 1
        if self._taken > MOST_LINES:
            raise csv.Error(f"a quotation mark is not closed within {MOST_LINES} lines")
        return text


class _long_fields:
    """Fields of any length; the csv module has one limit for the whole process, so it is put back."""

    def __enter__(self) -> None:
        self._limit = csv.field_size_limit(sys.maxsize)

    def __exit__(self, *error: object) -> None:
        csv.field_size_limit(self._limit)


def _require_column(header: list[str], text_key: str, where: str) -> None:
    if text_key not in header:
        what = f"the table has no column {text_key!r}"
        fix = f"set data.text_key to one of its columns: {', '.join(header) or 'none at all'}"
        if len(header) != len(set(header)) or not all(header):
            fix += " (its first row has to name the columns)"
        raise DataError(what, where, fix)


def _document(row: list[str], header: list[str], text_key: str, where: str) -> Document:
    try:
        if len(row) != len(header):
            what = f"{len(row)} fields where the first row has {len(header)}: {shorten(row)}"
            raise DataError(what, where, repair(SECTION))
        text = row[header.index(text_key)]
        if any("\udc80" <= character <= "\udcff" for character in text if not character.isascii()):
            value = text.encode(errors="surrogateescape")
            fix = "convert the file (iconv -f <encoding> -t utf-8), or set data.on_error=skip"
            raise DataError(f"bytes that are not UTF-8 in: {shorten(value)}", where, fix)
        return Document(where, (row_text({text_key: text}, text_key, where),))
    except DataError as error:
        shown = shorten(",".join(row).encode(errors="surrogateescape"), 200)
        return Document(where, error=error, row=shown)


def parquet_documents(path: Path, text_key: str) -> Iterator[Document]:
    """Documents of a Parquet file; only the column with the text is read, `ROWS` rows at a time.

    Raises:
        DataError: there is no such column.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            _require_column(file.schema_arrow.names, text_key, str(path))
            number = 0
            for batch in file.iter_batches(ROWS, columns=[text_key], use_threads=False):
                for value in _values(batch.column(0)):
                    number += 1
                    where = f"{path}, row {number}"
                    try:
                        yield Document(where, (row_text({text_key: value}, text_key, where),))
                    except DataError as error:
                        yield Document(where, error=error, row=shorten(value, 200))
    except (pyarrow.ArrowException, OSError) as error:
        what = f"the Parquet file cannot be read: {str(error).splitlines()[0]}"
        unreadable = DataError(what, str(path), "fetch or write the file again")
        yield Document(str(path), error=unreadable)


def _values(column: Any) -> list[Any]:
    """The values of a column; bytes where its texts are not all UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [_decoded(value) for value in column.cast("binary").to_pylist()]
    return values


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
