"""Local text files and tables, plain or packed, alone, in folders or by pattern."""

from __future__ import annotations

import codecs
import glob
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmtrain.data.corpus import Corpus, Document, HashFile, Source, clean, hash_texts, row_text
from llmtrain.data.lines import (
    PACKED,
    Unreadable,
    bad_encoding,
    broken,
    numbered_lines,
    open_file,
    parse_json,
    shown,
    suggest_path,
    unpack,
)
from llmtrain.data.tables import parquet_documents, table_documents
from llmtrain.schema.data import Documents, OnError, TextData
from llmtrain.utils.errors import DataError

PLAIN = (".txt", ".html", ".htm")
"""Endings of files that hold text; of the others a row is a document."""

SUFFIXES = (*PLAIN, ".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of the files that are understood, of all but the last also with .gz or .zst behind them."""

KNOWN = f"{', '.join(SUFFIXES)}; .gz and .zst behind them"
"""The same for messages."""

BLOCK = 1 << 20
"""Bytes of a text file that are decoded at once."""

SECTION = "data"
"""Of the config, for messages."""


def find_files(patterns: Sequence[str], setting: str) -> list[Path]:
    """Files behind a list of files, folders and patterns; a folder's and a pattern's are sorted by name.

    Raises:
        DataError: nothing is named, a file is missing or of an unknown kind, a folder has no text.
    """
    if not patterns:
        raise DataError("no text is named", setting, f"set {setting}=[a.txt,b.jsonl]")
    found: list[Path] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        elif path.exists():
            files = [path]
        elif glob.has_magic(pattern):
            matches = map(Path, glob.glob(str(path), recursive=True))
            files = sorted(file for file in matches if file.is_file())
        else:
            raise DataError(f"there is no file {pattern}", setting, suggest_path(path))
        if not files:
            raise DataError(f"no text file matches {pattern}", setting, f"endings that are read: {KNOWN}")
        found += files
    unknown = [file for file in found if not _kind(file)]
    if unknown:
        raise DataError(
            f"the kind of file is not known: {unknown[0].name}",
            f"{setting}: {unknown[0]}",
            f"endings that are read: {KNOWN}",
        )
    return found


def _kind(path: Path) -> str | None:
    """Which of `SUFFIXES` a name has, that of packing left out; None where it has none."""
    name = path.name if path.suffix not in PACKED else path.stem
    kind = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    return None if kind == ".parquet" and path.suffix in PACKED else kind


class FileCorpus(Corpus):
    """Documents of local files, in the order of the files.

    Args:
        files: paths that end in one of `SUFFIXES`.
        text_key: field of a JSON line, or column of a table, that holds the text.
        unit: what is one document in a .txt file.
        check_first: read each .txt file twice, so that a fault is known before its first part is given
            out (for `on_error=skip`; a document is used whole or not at all).
    """

    def __init__(
        self, files: Sequence[Path], *, text_key: str, unit: Documents, check_first: bool = False
    ) -> None:
        self.files = list(files)
        self.text_key = text_key
        self.unit = unit
        self.check_first = check_first
        self.name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        self._total = sum(file.stat().st_size for file in self.files) or 1
        self._done = 0
        self._raw: BinaryIO | None = None

    def fingerprint(self, hash_file: HashFile) -> str:
        kinds = {_kind(file) for file in self.files}
        unit = self.unit.value if ".txt" in kinds else ""
        key = self.text_key if kinds - {*PLAIN} else ""
        contents = (f"{_kind(file)}{file.suffix}:{hash_file(file)}" for file in self.files)
        return hash_texts("files", unit, key, *contents)

    def progress(self) -> float | None:
        raw = self._raw
        try:
            return (self._done + (raw.tell() if raw else 0)) / self._total
        except ValueError:  # closed between the look and the call
            return self._done / self._total

    def documents(self) -> Iterator[Document]:
        self._done = 0
        for path in self.files:
            kind = _kind(path)
            if kind == ".jsonl":
                yield from self._json_lines(path)
            elif kind == ".parquet":
                yield from parquet_documents(path, self.text_key)
            elif kind in (".csv", ".tsv"):
                with self._open(path) as stream:
                    yield from table_documents(stream, path, self.text_key)
            elif self.unit == Documents.file or kind != ".txt":
                yield self._whole_file(path)
            else:
                yield from self._lines_or_paragraphs(path)
            self._done += path.stat().st_size

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        """The unpacked bytes of a file."""
        with open_file(path) as raw, unpack(raw, path) as unpacked:
            self._raw = raw
            try:
                yield unpacked
            finally:
                self._raw = None

    def _lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        with self._open(path) as stream:
            yield from numbered_lines(stream, str(path), SECTION)

    def _json_lines(self, path: Path) -> Iterator[Document]:
        try:
            for number, line in self._lines(path):
                where = f"{path}:{number}"
                if not line.strip():
                    yield Document(where)
                    continue
                try:
                    row = parse_json(line.decode().rstrip("\r\n"), where, SECTION)
                    yield Document(where, (row_text(row, self.text_key, where),))
                except UnicodeDecodeError as fault:
                    yield Document(where, error=bad_encoding(fault, where, SECTION), row=shown(line))
                except DataError as error:
                    yield Document(where, error=error, row=shown(line))
        except Unreadable as unreadable:
            yield Document(str(path), error=unreadable.error)

    def _whole_file(self, path: Path) -> Document:
        if self.check_first:
            try:
                for _ in self._blocks(path):
                    pass
            except DataError as error:
                return Document(str(path), error=error)
        return Document(str(path), self._blocks(path))

    def _blocks(self, path: Path) -> Iterator[str]:
        """Decoded parts of a text file, about 1 MB each."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        line, carry, first = 1, "", True
        with self._open(path) as stream:
            last = False
            while not last:
                data = _read(stream, path, line)
                last = not data
                pending = decoder.getstate()[0]
                try:
                    text = carry + decoder.decode(data, final=last)
                except UnicodeDecodeError as error:
                    line += (pending + data)[: error.start].count(b"\n")
                    raise bad_encoding(error, f"{path}:{line}", SECTION) from None
                if first and text:
                    text, first = text.removeprefix("\ufeff"), False
                line += data.count(b"\n")
                carry = "\r" if text.endswith("\r") and not last else ""
                text = clean_line_ends(text[: len(text) - len(carry)])
                if text:
                    yield text

    def _lines_or_paragraphs(self, path: Path) -> Iterator[Document]:
        paragraph: list[str] = []
        error: DataError | None = None
        start = 1
        try:
            for number, raw in self._lines(path):
                where = f"{path}:{number}"
                try:
                    text = clean(raw.decode()).removesuffix("\n")
                except UnicodeDecodeError as fault:
                    text, error = "?", error or bad_encoding(fault, where, SECTION)
                if self.unit == Documents.line:
                    yield Document(where, () if error else (text,), error)
                    error = None
                elif text.strip():
                    start = start if paragraph else number
                    paragraph.append(text)
                elif paragraph:
                    yield Document(f"{path}:{start}", () if error else ("\n".join(paragraph),), error)
                    paragraph, error = [], None
        except Unreadable as unreadable:
            error = unreadable.error
        if paragraph or error:
            yield Document(f"{path}:{start}", () if error else ("\n".join(paragraph),), error)


def clean_line_ends(text: str) -> str:
    """CRLF to LF."""
    return text.replace("\r\n", "\n") if "\r" in text else text


def _read(stream: BinaryIO, path: Path, line: int) -> bytes:
    try:
        return stream.read(BLOCK)
    except (EOFError, zlib.error, OSError) as error:
        raise broken(error, f"{path}:{line}", SECTION) from error


def text_source(config: TextData) -> Source:
    """Local files for training and, where named, for validation.

    Raises:
        DataError: a file is missing or of an unknown kind.
    """
    skip = config.on_error == OnError.skip

    def corpus(paths: list[str], setting: str) -> FileCorpus:
        files = find_files(paths, setting)
        return FileCorpus(files, text_key=config.text_key, unit=config.documents, check_first=skip)

    validation = config.validation_paths
    return Source(
        corpus(config.paths, "data.paths"),
        corpus(validation, "data.validation_paths") if validation else None,
    )
