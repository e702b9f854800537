"""From the documents of a corpus to the tokens of a store: cut, tokenise, append, journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from llmtrain.data.ahead import ReadAhead
from llmtrain.data.corpus import Corpus
from llmtrain.data.writer import Position, StoreWriter
from llmtrain.schema.data import OnError
from llmtrain.utils.errors import DataError, Stopped

BATCH_CHARACTERS = 1 << 21
"""Text that is tokenised at once; the memory of a preparation is a small multiple of it."""

BATCH_PIECES = 8192
"""Pieces that are tokenised at once at most."""

JOURNAL_SECONDS = 3.0
"""Time between two entries in the journal."""

MAX_MESSAGES = 5
"""Skipped faults that are kept word by word."""

Poll = Callable[[], None]
Cut = Callable[[Iterable[str]], Iterator[str]]


@dataclass(frozen=True)
class Progress:
    """What `prepare` tells its caller while it works.

    Attributes:
        stage: `tokenizer` while one is trained, `tokens` while the text is tokenised, `waiting` while
            another process does it.
        name: the corpus.
        fraction: share of the source that is done, or None where that is not known.
        text_bytes: UTF-8 bytes of text done.
        tokens: tokens written.
    """

    stage: str
    name: str
    fraction: float | None = None
    text_bytes: int = 0
    tokens: int = 0


Report = Callable[[Progress], None]


class Piece(NamedTuple):
    """A piece of a document as it goes to the tokenizer.

    Attributes:
        text: the piece.
        last: whether the document ends with it.
        fault: "" for text; `empty` for an empty document; else why the document was skipped.
    """

    text: str
    last: bool
    fault: str = ""


def document_pieces(corpus: Corpus, cut: Cut, on_error: OnError) -> Iterator[Piece]:
    """The source as pieces, always the same for the same content."""
    for document in corpus.documents():
        if document.error is not None:
            if on_error == OnError.fail:
                raise document.error
            problem = document.error.problems[0]
            yield Piece("", True, f"{problem.what} ({problem.where})")
            continue
        held: str | None = None
        long = False
        for piece in cut(document.parts):
            if held is not None:
                yield Piece(held, False)
                long = True
            held = piece
        assert held is not None
        yield Piece(held, True, "" if long or held.strip() else "empty")


def _batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Pieces in lists of about `BATCH_CHARACTERS`."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fill(
    writer: StoreWriter,
    corpus: Corpus,
    on_error: OnError,
    max_tokens: int | None,
    *,
    poll: Poll = lambda: None,
    report: Report = lambda progress: None,
) -> None:
    """Tokenise what a writer still lacks of a corpus.

    The next batch is read in a thread while the present one is tokenised on all cores.

    Raises:
        DataError: a row cannot be read, or the corpus has no text.
    """
    position = writer.position
    pieces = islice(document_pieces(corpus, writer.tokenizer.cut, on_error), position.pieces, None)
    batches = ReadAhead(_batches(pieces), 1, poll)
    journalled = time.monotonic()
    try:
        while position.tokens != max_tokens and (batch := next(batches, None)) is not None:
            _write(writer, batch, max_tokens)
            report(Progress("tokens", corpus.name, corpus.progress(), position.text_bytes, position.tokens))
            if time.monotonic() - journalled > JOURNAL_SECONDS:
                writer.commit()
                journalled = time.monotonic()
            poll()
        if not position.documents:
            raise DataError(
                "the data set is empty" + _faults(position), corpus.name, "give a source that has text in it"
            )
    except Stopped:
        writer.commit()
        raise
    finally:
        batches.close()


def _faults(position: Position) -> str:
    parts = [f"{number} {name}" for name, number in position.counts.items() if number]
    return f" ({', '.join(parts)} documents)" if parts else ""


def _write(writer: StoreWriter, batch: list[Piece], max_tokens: int | None) -> None:
    """Tokenise a batch of pieces and append it, up to `max_tokens` in the store."""
    position, tokenizer = writer.position, writer.tokenizer
    encoded = tokenizer.encode_batch([piece.text for piece in batch])
    end = np.array([tokenizer.end_id], dtype=tokenizer.dtype)
    out: list[np.ndarray] = []
    ends: list[int] = []
    sizes: list[int] = []
    tokens = position.tokens
    for piece, ids in zip(batch, encoded, strict=True):
        position.pieces += 1
        if piece.fault:
            _count_fault(position, piece.fault)
            continue
        room = None if max_tokens is None else max_tokens - tokens
        full = room is not None and len(ids) + piece.last > room
        if full:
            ids = ids[:room]
        size = tokenizer.count_bytes(ids) if full else _utf8_size(piece.text)
        position.text_bytes += size
        position.open_bytes += size
        position.open_tokens += len(ids)
        tokens += len(ids)
        out.append(ids)
        if tokenizer.unknown_id is not None:
            position.count("unknown", int((ids == tokenizer.unknown_id).sum()))
        if piece.last and not full:
            if not position.open_tokens:
                position.count("lost")
            out.append(end)
            tokens += 1
        if piece.last or full or tokens == max_tokens:
            ends.append(tokens)
            sizes.append(position.open_bytes)
            position.open_bytes = position.open_tokens = 0
        if tokens == max_tokens:
            break
    writer.append(
        np.concatenate(out) if out else np.empty(0, tokenizer.dtype),
        np.array(ends, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
    )


def _count_fault(position: Position, fault: str) -> None:
    if fault == "empty":
        position.count("empty")
        return
    position.count("skipped")
    if len(position.messages) < MAX_MESSAGES:
        position.messages.append(fault)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
