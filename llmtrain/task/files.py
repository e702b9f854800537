"""Files of examples: rows of TSV, CSV and JSON lines, plain or with gzip, each with its file and line.

A mistake in a single row goes to `Faults`, which stops or goes on without the row, as `task.on_error`
says. A mistake in a whole file (it is missing, empty, has no such column) always stops.
"""

from __future__ import annotations

import csv
import difflib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.data.corpus import clean, shorten
from llmtrain.data.fill import Poll
from llmtrain.data.lines import (
    Unreadable,
    bad_encoding,
    broken,
    numbered_lines,
    open_file,
    parse_json,
    repair,
    suggest_path,
    unpack,
)
from llmtrain.schema.data import OnError
from llmtrain.schema.task import FileFormat, TaskConfig
from llmtrain.task.base import nothing_to_ask
from llmtrain.utils.errors import DataError

SECTION = "task"
"""Of the config, for messages."""

REPAIR = repair(SECTION)
"""What to do about a row that is wrong."""

ENDINGS: dict[str, FileFormat] = {
    ".tsv": FileFormat.tsv,
    ".txt": FileFormat.tsv,
    ".csv": FileFormat.csv,
    ".jsonl": FileFormat.jsonl,
}
"""Format of a file by the ending of its name, without .gz."""

DELIMITERS = {FileFormat.tsv: "\t", FileFormat.csv: ","}
"""What parts the fields of a line."""


@dataclass
class Faults:
    """Broken examples: the first one ends the reading, or they are noted and left out.

    Attributes:
        on_error: which of the two.
        poll: called for each line that is read; may raise to give up (a stop signal).
        noted: what was wrong with those left out, each with its place.
    """

    on_error: OnError
    poll: Poll = nothing_to_ask
    noted: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Raise the error, or note it."""
        if self.on_error is OnError.fail:
            raise error
        self.noted += [f"{problem.where}: {problem.what}" for problem in error.problems]

    def nothing_left(self, what: str, paths: Sequence[Path]) -> DataError:
        """The error for files in which no example, or only broken ones, were found."""
        fix = f"the first of {len(self.noted)} faults: {self.noted[0]}" if self.noted else ""
        return DataError(f"there is no {what}", ", ".join(map(str, paths)), fix or "give a file with some")

    @contextmanager
    def caught(self) -> Iterator[None]:
        """What goes wrong inside is added; what follows inside is not done."""
        try:
            yield
        except DataError as error:
            self.add(error)


@dataclass(frozen=True)
class Row:
    """What one row holds in the columns that were asked for.

    Attributes:
        where: `file:line`.
        values: by the name of the setting that names the column.
    """

    where: str
    values: Mapping[str, Any]


def task_paths(config: TaskConfig, names: Sequence[str], setting: str = "task.paths") -> list[Path]:
    """Files in the task's folder, or with their own paths where it has none.

    Raises:
        DataError: none is named, or one is missing.
    """
    if not names:
        raise DataError("no file is named", setting, f"set {setting}=[train.tsv]")
    folder = Path(config.folder or "").expanduser()
    if config.folder is not None and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "there is no such folder"
        raise DataError(f"{what}: {config.folder}", "task.folder", suggest_path(folder))
    paths = []
    for name in names:
        path = folder / Path(name).expanduser()
        if path.is_dir():
            raise DataError(f"{path} is a folder", setting, f"name files: {setting}=[a.tsv,b.tsv]")
        if not path.exists():
            fix = suggest_path(path)
            if config.folder is None:
                fix += f"{' ' if fix.endswith('?') else '; '}set task.folder where {path.name} lies elsewhere"
            raise DataError(f"there is no file {path}", setting, fix)
        paths.append(path)
    return paths


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[str, str]]:
    """`file:line` and text of each line, without byte order mark and line end.

    A line that is no UTF-8 and a broken end of a packed file are faults.

    Raises:
        DataError: the file cannot be opened, or is empty.
    """
    with open_file(path) as raw, unpack(raw, path) as stream:
        yield from decoded(numbered_lines(stream, str(path), SECTION), str(path), faults)


def decoded(lines: Iterable[tuple[int, bytes]], name: str, faults: Faults) -> Iterator[tuple[str, str]]:
    """The same as `read_lines`, for numbered lines of bytes from anywhere."""
    empty = True
    try:
        for number, line in lines:
            faults.poll()
            empty = False
            where = f"{name}:{number}"
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                faults.add(bad_encoding(error, where, SECTION))
                continue
            yield where, text.removesuffix("\n").removesuffix("\r")
    except Unreadable as unreadable:
        empty = False
        faults.add(unreadable.error)
    if empty:
        raise DataError("the file is empty", name, "give a file with examples")


def read_json(path: Path) -> Any:
    """The value that a whole file spells as JSON.

    Raises:
        DataError: the file cannot be read, or is not JSON; names the place.
    """
    with open_file(path) as raw, unpack(raw, path) as stream:
        try:
            data = stream.read()
        except (EOFError, zlib.error, OSError) as error:
            raise broken(error, str(path), SECTION) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise bad_encoding(error, f"{path}:{line}", SECTION) from None
    return parse_json(text.removeprefix("\ufeff"), str(path), SECTION)


def format_of(path: Path, given: FileFormat) -> FileFormat:
    """Format of a file: the given one, or with `auto` by the name.

    Raises:
        DataError: the name does not tell.
    """
    if given is not FileFormat.auto:
        return given
    ending = _ending(path)
    if ending not in ENDINGS:
        fix = "give a .tsv, .csv or .jsonl file, or set task.format=tsv, csv or jsonl"
        raise DataError(f"the kind of file is not known: {path.name}", str(path), fix)
    return ENDINGS[ending]


def holds_plain_text(path: Path, given: FileFormat) -> bool:
    """Whether a file without labels has one text a line: .txt, or (standard input) a name without ending."""
    ending = _ending(path)
    return ending == ".txt" or (ending == "" and given is FileFormat.auto)


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_rows(
    path: Path, columns: Mapping[str, str], faults: Faults, *, layout: FileFormat, header: bool, quoting: bool
) -> Iterator[Row]:
    """Rows of a TSV, CSV or JSON lines file; empty lines are no rows.

    Args:
        path: the file.
        columns: setting that names a column, such as `text_column` -> the column.
        faults: takes rows that cannot be read.
        layout: tsv, csv or jsonl.
        header: of TSV and CSV: the first line names the columns; else they are numbered from 0.
        quoting: of TSV and CSV: `"` quotes a field.

    Raises:
        DataError: the file cannot be opened, is empty or lacks a column.
    """
    lines = read_lines(path, faults)
    if layout is FileFormat.jsonl:
        yield from _objects(lines, columns, faults)
        return
    records = _records(lines, DELIMITERS[layout], quoting, faults)
    width, first_row = 0, "header" if header else "first row"
    places: dict[str, int] = {}
    for where, fields in records:
        if not width:
            width = len(fields)
            places = _places(fields, columns, header, where)
            if header:
                continue
        if len(fields) != width:
            what = f"{len(fields)} fields where the {first_row} has {width}: {shorten(fields)}"
            fix = REPAIR + ('; if `"` is an ordinary character, set task.quoting=false' if quoting else "")
            faults.add(DataError(what, where, fix))
            continue
        yield Row(where, {setting: fields[place] for setting, place in places.items()})


def read_texts(path: Path, settings: Sequence[str], faults: Faults) -> Iterator[Row]:
    """Rows of plain text: a line is one text, or as many as there are settings, parted by tabs.

    Raises:
        DataError: the file cannot be opened, or is empty.
    """
    for where, line in read_lines(path, faults):
        texts = line.split("\t") if len(settings) > 1 else [line]
        if len(texts) == len(settings):
            yield Row(where, dict(zip(settings, texts, strict=True)))
        else:
            what = f"{len(texts)} texts where {len(settings)} are needed: {shorten(line)}"
            faults.add(DataError(what, where, "part the texts by a tab, or give a file with named columns"))


def _places(first: list[str], columns: Mapping[str, str], header: bool, where: str) -> dict[str, int]:
    """Index of each column, from the first row.

    Raises:
        DataError: there is no such column, or the header names it twice.
    """
    names = [name.strip() for name in first] if header else [str(i) for i in range(len(first))]
    places = {}
    for setting, column in columns.items():
        if column not in names and header:
            fix = f"{_suggest(column, names, setting)}, or task.header=false if this line is an example"
            raise DataError(f"there is no column {column!r}", where, fix)
        if column not in names:
            fix = f"set task.{setting} to a number from 0 to {len(first) - 1}, or task.header=true"
            raise DataError(f"there is no column {column!r} without a header", where, fix)
        if names.count(column) > 1:
            raise DataError(f"the header names {column!r} twice", where, "rename one of the columns")
        places[setting] = names.index(column)
    return places


def _suggest(column: str, names: Iterable[str], setting: str) -> str:
    """What to do about a column that is not there."""
    names = list(names)
    close = difflib.get_close_matches(column, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}set task.{setting} to one of: {', '.join(names)}"


def _records(
    lines: Iterator[tuple[str, str]], delimiter: str, quoting: bool, faults: Faults
) -> Iterator[tuple[str, list[str]]]:
    """Place and fields of each row; a quoted field may hold line ends, its row stands where it starts."""
    if not quoting:
        yield from ((where, text.split(delimiter)) for where, text in lines if text)
        return
    taken: list[str] = []

    def feed() -> Iterator[str]:
        for where, text in lines:
            taken.append(where)
            yield text + "\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = f" (up to line {taken[-1].rpartition(':')[2]})" if len(taken) > 1 else ""
            fix = f'{REPAIR}; if `"` is an ordinary character, set task.quoting=false'
            faults.add(DataError(f"the row cannot be parted into fields: {error}{end}", taken[0], fix))
            continue
        if fields:
            yield taken[0], fields


def _objects(lines: Iterator[tuple[str, str]], columns: Mapping[str, str], faults: Faults) -> Iterator[Row]:
    """Rows of JSON lines."""
    for where, text in lines:
        if text.strip():
            values = None
            with faults.caught():
                values = _fields(parse_json(text, where, SECTION), columns, where)
            if values is not None:
                yield Row(where, values)


def _fields(row: Any, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """What a row of JSON lines holds in some columns, by their settings.

    Raises:
        DataError: it is no object, or has no such field.
    """
    if not isinstance(row, dict):
        fix = f'write {{"name": value, ...}} on each line; {REPAIR}'
        raise DataError(f"the row is not an object with fields: {shorten(row)}", where, fix)
    for setting, column in columns.items():
        if column not in row:
            fix = f"{_suggest(column, row, setting)}; {REPAIR}"
            raise DataError(f"the row has no field {column!r}", where, fix)
    return {setting: row[column] for setting, column in columns.items()}


def text_of(value: Any, where: str, what: str) -> str:
    """A text as it is used: line ends as LF.

    Args:
        value: of a row.
        where: `file:line`.
        what: it is, for messages.

    Raises:
        DataError: it is not text.
    """
    if not isinstance(value, str):
        raise DataError(f"the {what} is not a text: {shorten(value)}", where, REPAIR)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = shorten(value[error.start])
        raise DataError(
            f"the {what} has half of a surrogate pair, which is no character: {half}", where, REPAIR
        ) from None
    return clean(value)
