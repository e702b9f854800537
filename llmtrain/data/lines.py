"""Lines of local files, plain or packed, and what a user is told where one cannot be read."""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from llmtrain.data.corpus import shorten
from llmtrain.utils.errors import DataError

PACKED = (".gz", ".zst")
"""Endings of packed files."""

ZSTD_BUFFER = 1 << 13
"""Bytes that are unpacked ahead of the lines; those before a broken place are lost with it."""


class Unreadable(Exception):
    """A part of a file cannot be read; carries what a human needs to know."""

    def __init__(self, error: DataError) -> None:
        super().__init__(str(error))
        self.error = error


def open_file(path: Path) -> BinaryIO:
    """The bytes of a file as they are on the disk.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"the file cannot be opened: {error.strerror}", str(path), "check its name and rights"
        ) from error


def unpack(raw: BinaryIO, path: Path) -> BinaryIO:
    """The bytes of an open file, unpacked where its name ends in .gz or .zst."""
    if path.suffix == ".gz":
        # not in a larger buffer, which would lose what comes before a broken end
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.suffix == ".zst":
        import pyarrow  # which `datasets` brings along; Python itself knows Zstandard from 3.14 on

        # closing it closes `raw` too, which does no harm
        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), ZSTD_BUFFER))
    return raw


def numbered_lines(stream: BinaryIO, name: str, section: str) -> Iterator[tuple[int, bytes]]:
    """Lines as bytes with their ends, numbered from 1, without a byte order mark.

    Args:
        stream: unpacked bytes.
        name: of the file, for messages.
        section: of the config that has `on_error`, for messages.

    Raises:
        Unreadable: the packed file is broken from here on.
    """
    number = 0
    while True:
        try:
            line = stream.readline()
        except (EOFError, zlib.error, OSError) as error:
            raise Unreadable(broken(error, f"{name}:{number + 1}", section)) from error
        if not line:
            return
        number += 1
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def broken(error: Exception, where: str, section: str) -> DataError:
    """What is wrong with a file whose bytes cannot be had."""
    if isinstance(error, EOFError):
        what = "the gzip file ends in the middle (a copy or download that was cut short?)"
    elif isinstance(error, (gzip.BadGzipFile, zlib.error)):
        what = f"the gzip file is broken: {error}"
    elif "runcated compressed stream" in str(error):
        what = "the zst file ends in the middle (a copy or download that was cut short?)"
    elif "ZSTD" in str(error):
        what = f"the zst file is broken: {error}"
    else:
        what = f"the file cannot be read: {error}"
    fix = f"fetch the file again; {section}.on_error=skip goes on with what could be read"
    return DataError(what, where, fix)


def bad_encoding(error: UnicodeDecodeError, where: str, section: str) -> DataError:
    """What is wrong with bytes that are no UTF-8."""
    value = bytes(error.object[error.start : error.start + 8])
    return DataError(
        f"bytes that are not UTF-8: {shorten(value)}",
        where,
        f"convert the file (iconv -f <encoding> -t utf-8), or set {section}.on_error=skip",
    )


def shown(line: bytes, width: int = 200) -> str:
    """The start of a line that cannot be read, for a human."""
    return line[:width].decode(errors="backslashreplace").rstrip("\r\n") + (
        "..." if len(line) > width else ""
    )


def repair(section: str) -> str:
    """What to do about a row that is wrong."""
    return f"repair the row, or set {section}.on_error=skip"


def parse_json(text: str, where: str, section: str) -> Any:
    """The value that a text spells as JSON.

    Raises:
        DataError: it is not JSON; names the place in it.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 40]
        what = error.msg.removesuffix(" starting at")
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DataError(
            f"broken JSON: {what} at {place}, near {shorten(near)}", where, repair(section)
        ) from None
    except RecursionError:
        raise DataError("broken JSON: nested too deeply", where, repair(section)) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"broken JSON: {error}", where, repair(section)) from None


def require_file(name: str, setting: str) -> Path:
    """The path of a file that a user names.

    Raises:
        DataError: there is none; with what may have been meant.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise DataError(f"{name} is a folder", setting, "name a file in it")
    if not path.exists():
        raise DataError(f"there is no file {name}", setting, suggest_path(path))
    return path


def suggest_path(path: Path) -> str:
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
