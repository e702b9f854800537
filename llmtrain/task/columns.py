"""Sentences with a tag for each word, from files in CoNLL columns and from plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from llmtrain.data.corpus import shorten
from llmtrain.metrics.entities import OUTSIDE, PREFIXES, is_tag
from llmtrain.schema.data import OnError
from llmtrain.schema.task import Scheme, TokenClassificationTask
from llmtrain.task.files import REPAIR, Faults, read_lines
from llmtrain.utils.errors import DataError

DOCUMENT = "-DOCSTART-"
"""Word that begins a document in the files of CoNLL; it belongs to no sentence."""

LOOK = 1000
"""Lines of a file that are looked at to tell what it is."""

BLANKS = re.compile(r"[ \t]+")
"""What parts columns and words; other white space, such as U+3000, may be a word."""


@dataclass
class Sentence:
    """A sentence as it was read.

    Attributes:
        words: of the sentence.
        tags: of the words; None where they are not known.
        path: of its file.
        line: of its first word; the others follow line by line.
    """

    words: list[str]
    tags: list[str] | None = None
    path: str = ""
    line: int = 0

    def where(self, word: int = 0) -> str:
        """`file:line` of a word."""
        return f"{self.path}:{self.line + word}"


def read_columns(
    path: Path, config: TokenClassificationTask, labelled: bool, faults: Faults
) -> Iterator[Sentence]:
    """Sentences of a file in CoNLL columns.

    Columns are parted by tabs if the line has one, else by blanks. Empty lines and -DOCSTART- lines part
    sentences. A fault leaves out its whole sentence.

    Args:
        path: the file.
        config: names the columns and the scheme of the tags.
        labelled: False where only words are read.
        faults: takes sentences that cannot be read.

    Raises:
        DataError: the file cannot be opened, or is empty.
    """
    width = first = noted = 0
    rows: list[list[str]] = []
    for where, line in chain(read_lines(path, faults), [("", "")]):
        fields = _columns(line)
        if fields and fields[0] != DOCUMENT:
            first = first if rows else int(where.rpartition(":")[2])
            width = width or len(fields)
            rows.append(fields)
            continue
        found = None
        if rows and len(faults.noted) == noted:  # else one of its lines could not be read
            with faults.caught():
                found = _sentence(rows, width, config, labelled, str(path), first)
        if found:
            yield found
        rows, noted = [], len(faults.noted)


def holds_columns(path: Path, config: TokenClassificationTask) -> bool:
    """Whether a .txt file is in columns, as CoNLL's are, and not plain text: it has several rows, and each
    of them a tag where the tags stood in training.

    Raises:
        DataError: the file cannot be opened, or is empty.
    """
    rows = [
        fields
        for _, line in islice(read_lines(path, Faults(OnError.skip)), LOOK)
        if (fields := _columns(line)) and fields[0] != DOCUMENT
    ]
    width = len(rows[0]) if rows else 0
    return (
        len(rows) > 1
        and -width <= config.label_column < width
        and width > 1
        and all(len(fields) == width for fields in rows)
        and all(is_tag(fields[config.label_column], config.scheme) for fields in rows)
    )


def _columns(line: str) -> list[str]:
    if "\t" in line:
        fields = line.split("\t")
        return fields if any(text.strip(" ") for text in fields) else []
    return [text for text in line.split(" ") if text]


def _sentence(
    rows: Sequence[list[str]],
    width: int,
    config: TokenClassificationTask,
    labelled: bool,
    path: str,
    line: int,
) -> Sentence:
    """The sentence of some rows, from line `line` on.

    Raises:
        DataError: a row is not of `width` columns, lacks a column that is needed or has an unknown tag.
    """
    sentence = Sentence([], [] if labelled else None, path, line)
    columns = {"word_column": config.word_column} | (
        {"label_column": config.label_column} if labelled else {}
    )
    for number, fields in enumerate(rows):
        where = sentence.where(number)
        if len(fields) != width:
            what = f"{len(fields)} columns where the first row has {width}: {shorten(' '.join(fields))}"
            raise DataError(what, where, REPAIR)
        for setting, column in columns.items():
            if not -width <= column < width:
                fix = f"set task.{setting} to a number from 0 to {width - 1}, or from -{width} to -1"
                raise DataError(f"there is no column {column} in rows of {width}", where, fix)
            if not fields[column].strip(" "):
                raise DataError(f"nothing stands in column {column}", where, REPAIR)
        sentence.words.append(fields[config.word_column])
        if sentence.tags is not None:
            tag = fields[config.label_column]
            if not is_tag(tag, config.scheme):
                raise _unknown_tag(tag, config.scheme, where)
            sentence.tags.append(tag)
    return sentence


def _unknown_tag(tag: str, scheme: Scheme, where: str) -> DataError:
    fitting = " or ".join(other.value for other in PREFIXES if is_tag(tag, other))
    known = ", ".join([OUTSIDE, *(f"{prefix}-..." for prefix in PREFIXES[scheme])])
    fix = f"set task.scheme={fitting}" if fitting else "set task.label_column to that of the tags"
    return DataError(f"{tag!r} is no tag of scheme {scheme.value} ({known})", where, f"{fix}; or {REPAIR}")


def read_sentences(path: Path, joined: bool, faults: Faults) -> Iterator[Sentence]:
    """Sentences of a plain text file, one a line; an empty line is a sentence without words.

    Args:
        path: the file.
        joined: every character but white space is a word; else blanks and tabs part words.
        faults: takes lines that cannot be read.

    Raises:
        DataError: the file cannot be opened, or is empty.
    """
    for where, line in read_lines(path, faults):
        if joined:
            words = [char for char in line if not char.isspace()]
        else:
            words = [word for word in BLANKS.split(line) if word]
        yield Sentence(words, None, str(path), int(where.rpartition(":")[2]))
