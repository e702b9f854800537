"""Local text files: .txt and .jsonl, plain or with gzip, alone, in folders or by pattern."""

from __future__ import annotations

import codecs
import difflib
import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmtrain.data.corpus import Corpus, Document, HashFile, Source, clean, hash_texts, row_text, shorten
from llmtrain.schema.groups import Documents, OnError, TextData
from llmtrain.utils.errors import DataError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
"""Endings of the files that are understood."""

BLOCK = 1 << 20
"""Bytes of a text file that are decoded at once."""

REPAIR = "repair the row, or set data.on_error=skip"


class Unreadable(Exception):
    """A part of a file cannot be read; carries what a human needs to know."""

    def __init__(self, error: DataError) -> None:
        super().__init__(str(error))
        self.error = error


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
            raise DataError(f"there is no file {pattern}", setting, _suggest(path))
        if not files:
            raise DataError(
                f"no text file matches {pattern}", setting, f"endings that are read: {', '.join(SUFFIXES)}"
            )
        found += files
    unknown = [file for file in found if not _kind(file)]
    if unknown:
        raise DataError(
            f"the kind of file is not known: {unknown[0].name}",
            f"{setting}: {unknown[0]}",
            f"endings that are read: {', '.join(SUFFIXES)}",
        )
    return found


def _kind(path: Path) -> str | None:
    """`.txt` or `.jsonl`, by the name without `.gz`; None where it is neither."""
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in (".txt", ".jsonl") if name.endswith(suffix)), None)


def _suggest(path: Path) -> str:
    """What to do about a missing file."""
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"did you mean {folder / close[0]}?"
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"in {folder} there is: {listed}" if names else f"the folder {folder} is empty"


class FileCorpus(Corpus):
    """Documents of local files, in the order of the files.

    Args:
        files: paths that end in one of `SUFFIXES`.
        text_key: field of a JSON line that holds the text.
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
        key = self.text_key if ".jsonl" in kinds else ""
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
            if _kind(path) == ".jsonl":
                yield from self._json_lines(path)
            elif self.unit == Documents.file:
                yield self._whole_file(path)
            else:
                yield from self._lines_or_paragraphs(path)
            self._done += path.stat().st_size

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        """The unpacked bytes of a file."""
        with _opened(path) as raw:
            self._raw = raw
            try:
                if path.suffix == ".gz":
                    with gzip.GzipFile(fileobj=raw) as unpacked:
                        # not in a larger buffer, which would lose what comes before a broken end
                        yield unpacked  # type: ignore[misc]
                else:
                    yield raw
            finally:
                self._raw = None

    def _json_lines(self, path: Path) -> Iterator[Document]:
        try:
            for number, line in _lines(self._open, path):
                where = f"{path}:{number}"
                if not line.strip():
                    yield Document(where)
                    continue
                try:
                    row = _parse(line, where)
                    yield Document(where, (row_text(row, self.text_key, where),))
                except DataError as error:
                    yield Document(where, error=error)
        except Unreadable as fault:
            yield Document(str(path), error=fault.error)

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
                    raise _bad_encoding(error, f"{path}:{line}") from None
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
            for number, raw in _lines(self._open, path):
                where = f"{path}:{number}"
                try:
                    text = clean(raw.decode()).removesuffix("\n")
                except UnicodeDecodeError as fault:
                    text, error = "?", error or _bad_encoding(fault, where)
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


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"the file cannot be opened: {error.strerror}", str(path), "check its name and rights"
        ) from error


def clean_line_ends(text: str) -> str:
    """CRLF to LF."""
    return text.replace("\r\n", "\n") if "\r" in text else text


def _lines(opener, path: Path) -> Iterator[tuple[int, bytes]]:  # type: ignore[no-untyped-def]
    """Numbered lines of a file, as bytes, without a byte order mark.

    Raises:
        Unreadable: the packed file is broken from here on.
    """
    number = 0
    with opener(path) as stream:
        while True:
            try:
                line = stream.readline()
            except (EOFError, zlib.error, OSError) as error:
                raise Unreadable(_broken(error, f"{path}:{number + 1}")) from error
            if not line:
                return
            number += 1
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _read(stream: BinaryIO, path: Path, line: int) -> bytes:
    try:
        return stream.read(BLOCK)
    except (EOFError, zlib.error, OSError) as error:
        raise _broken(error, f"{path}:{line}") from error


def _broken(error: Exception, where: str) -> DataError:
    """What is wrong with a file whose bytes cannot be had."""
    if isinstance(error, EOFError):
        what = "the gzip file ends in the middle (a copy or download that was cut short?)"
    elif isinstance(error, (gzip.BadGzipFile, zlib.error)):
        what = f"the gzip file is broken: {error}"
    else:
        what = f"the file cannot be read: {error}"
    return DataError(what, where, "fetch the file again; data.on_error=skip goes on with what could be read")


def _bad_encoding(error: UnicodeDecodeError, where: str) -> DataError:
    value = bytes(error.object[error.start : error.start + 8])
    return DataError(
        f"bytes that are not UTF-8: {shorten(value)}",
        where,
        "convert the file (iconv -f <encoding> -t utf-8), or set data.on_error=skip",
    )


def _parse(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode().rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise _bad_encoding(error, where) from None
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 40]
        what = error.msg.removesuffix(" starting at")
        raise DataError(
            f"broken JSON: {what} at column {error.colno}, near {shorten(near)}", where, REPAIR
        ) from None
    except RecursionError:
        raise DataError("broken JSON: nested too deeply", where, REPAIR) from None


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
