"""What a data source gives: documents, one after the other, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llmtrain.utils.errors import DataError

HashFile = Callable[[Path], str]
"""SHA-256 of a file's content, as hex; `prepare` remembers those of big files."""


@dataclass
class Document:
    """One document, or the row that could not be read.

    Attributes:
        where: `file:line`, or what else leads a human to it.
        parts: the text in parts of any size; read once, so that a huge file is never held as a whole.
        error: why it cannot be read; the policy `data.on_error` decides what follows.
        row: what stands there, shortened, of a row that cannot be read.
        removed: the rule by which cleaning left it out; "" for a document that stays.
        counts: what cleaning changed in it, by the step's name.
        examples: what a human should see of that, and of the removal, by the same names.
    """

    where: str
    parts: Iterable[str] = ()
    error: DataError | None = None
    row: str = ""
    removed: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole text (uses up `parts`)."""
        return "".join(self.parts)


class Corpus(ABC):
    """Documents in a fixed order; the order and the texts depend on the fingerprinted content only.

    Attributes:
        name: what it is, for messages.
        remote_key: what names the corpus where its fingerprint comes over the network; the one seen last
            serves where there is none (prepare on a machine with a network, train on one without).
    """

    name: str
    remote_key: str | None = None

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, empty ones and unreadable rows too, from the first on.

        Raises:
            DataError: the source cannot be read at all.
        """

    @abstractmethod
    def fingerprint(self, hash_file: HashFile) -> str:
        """A text that changes when any document changes."""

    def progress(self) -> float | None:
        """Share of the source that the running iteration has read, or None where that is not known."""
        return None


@dataclass
class Source:
    """A corpus to train on and, where there is one of its own, a corpus to validate on."""

    train: Corpus
    validation: Corpus | None = None


def hash_texts(*parts: str) -> str:
    """SHA-256 of a list of texts, as hex."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def clean(text: str) -> str:
    """Text as all sources give it: no byte order mark, line ends as LF."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n") if "\r" in text else text


def shorten(value: object, width: int = 80) -> str:
    """A value for an error message."""
    text = repr(value)
    return text if len(text) <= width else f"{text[:width]}..."


def row_text(row: object, key: str, where: str) -> str:
    """The cleaned text of one row.

    Raises:
        DataError: the row has no such field, or it is not text.
    """
    if not isinstance(row, dict):
        raise DataError(
            f"the row is not an object with fields: {shorten(row)}", where, "use one object a line"
        )
    if key not in row:
        fields = ", ".join(map(str, row)) or "none at all"
        raise DataError(
            f"the row has no field {key!r}", where, f"set data.text_key to one of its fields: {fields}"
        )
    text = row[key]
    if not isinstance(text, str):
        raise DataError(
            f"field {key!r} is not text but {type(text).__name__}: {shorten(text)}",
            where,
            "set data.text_key to a field with text, repair the row, or set data.on_error=skip",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = shorten(text[error.start])
            raise DataError(
                f"field {key!r} has half of a surrogate pair, which is no character: {half}",
                where,
                "repair the row, or set data.on_error=skip",
            ) from None
    return clean(text)
