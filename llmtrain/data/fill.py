"""From the documents of a corpus to the tokens of a store: cut, tokenise, append, journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from llmtrain.data.ahead import ReadAhead
from llmtrain.data.corpus import Corpus
from llmtrain.data.writer import BAD_ROWS, Position, StoreWriter
from llmtrain.schema.data import DataConfig, OnError
from llmtrain.utils.errors import DataError, Stopped

BATCH_CHARACTERS = 1 << 21
"""Text that is tokenised at once; the memory of a preparation is a small multiple of it."""

BATCH_PIECES = 8192
"""Pieces that are tokenised at once at most."""

JOURNAL_SECONDS = 3.0
"""Time between two entries in the journal."""

MAX_MESSAGES = 5
"""Skipped faults that are kept word by word."""

MAX_EXAMPLES = 3
"""Examples that are kept of what each rule of cleaning did."""

CHECKED = 200
"""Documents, from the first on, of which it is checked whether they come back from their ids."""

CHECKED_BYTES = 1 << 20
"""Bytes of text after which that check ends all the same."""

ROUND_TRIP = "round trip"
"""Name of that check."""

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


class Note(NamedTuple):
    """What is to be counted about a document.

    Attributes:
        rule: `empty`; `skipped` for a row that cannot be read; the rule of cleaning that removed the
            document; "" for one that stays.
        where: place of the document.
        what: what is wrong with a row.
        row: what stands there.
        counts: what cleaning changed in it.
        examples: for a human, of the rule and of what was changed.
    """

    rule: str
    where: str = ""
    what: str = ""
    row: str = ""
    counts: Mapping[str, int] = {}
    examples: Mapping[str, str] = {}


class Piece(NamedTuple):
    """A piece of a document as it goes to the tokenizer.

    Attributes:
        text: the piece.
        last: whether the document ends with it.
        note: what is to be counted with it; without a rule the text stays all the same.
    """

    text: str
    last: bool
    note: Note | None = None


def document_pieces(corpus: Corpus, cut: Cut, on_error: OnError) -> Iterator[Piece]:
    """The source as pieces, always the same for the same content."""
    for document in corpus.documents():
        if document.error is not None:
            if on_error == OnError.fail:
                raise document.error
            problem = document.error.problems[0]
            yield Piece("", True, Note("skipped", problem.where, problem.what, document.row))
            continue
        note = None
        if document.removed or document.counts:
            removed, counts, examples = document.removed, document.counts, document.examples
            note = Note(removed, document.where, counts=counts, examples=examples)
        if document.removed:
            yield Piece("", True, note)
            continue
        held: str | None = None
        long = False
        for piece in cut(document.parts):
            if held is not None:
                yield Piece(held, False)
                long = True
            held = piece
        assert held is not None
        yield Piece(held, True, note if long or held.strip() else Note("empty"))


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
    data: DataConfig,
    *,
    max_tokens: int | None,
    poll: Poll = lambda: None,
    report: Report = lambda progress: None,
) -> None:
    """Tokenise what a writer still lacks of a corpus.

    The next batch is read in a thread while the present one is tokenised on all cores.

    Args:
        writer: of the store.
        corpus: the documents.
        data: says what to do about rows that cannot be read.
        max_tokens: tokens of the store at most.
        poll: called often; may raise to give up.
        report: told of the progress.

    Raises:
        DataError: a row cannot be read, or too many; the corpus has no text.
    """
    position = writer.position
    pieces = islice(document_pieces(corpus, writer.tokenizer.cut, data.on_error), position.pieces, None)
    batches = ReadAhead(_batches(pieces), 1, poll)
    journalled = time.monotonic()
    try:
        while position.tokens != max_tokens and (batch := next(batches, None)) is not None:
            _write(writer, batch, max_tokens, data.max_errors)
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
    counts = position.counts | position.removed
    parts = [f"{number} {name}" for name, number in counts.items() if number]
    return f" ({', '.join(parts)} documents)" if parts else ""


def _write(writer: StoreWriter, batch: list[Piece], max_tokens: int | None, max_errors: int | None) -> None:
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
        if piece.note is not None:
            _count(writer, piece.note, max_errors)
            if piece.note.rule:
                continue
        room = None if max_tokens is None else max_tokens - tokens
        full = room is not None and len(ids) + piece.last > room
        if full:
            ids = ids[:room]
        check = position.checked < CHECKED and position.text_bytes < CHECKED_BYTES and not full
        size = tokenizer.count_bytes(ids) if full else _utf8_size(piece.text)
        position.text_bytes += size
        position.open_bytes += size
        position.open_tokens += len(ids)
        tokens += len(ids)
        out.append(ids)
        if check:
            _check(writer, piece, ids)
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


def _count(writer: StoreWriter, note: Note, max_errors: int | None) -> None:
    """Count what happened to a document, and keep the first few as examples.

    Raises:
        DataError: more than `max_errors` rows cannot be read.
    """
    position = writer.position
    for name, number in note.counts.items():
        position.changed[name] = position.changed.get(name, 0) + number
    for name, example in note.examples.items():
        position.keep(name, f"{example} ({note.where})", MAX_EXAMPLES)
    if note.rule == "empty":
        position.count("empty")
    elif note.rule == "skipped":
        position.count("skipped")
        writer.write_bad_row({"where": note.where, "reason": note.what, "row": note.row})
        if len(position.messages) < MAX_MESSAGES:
            position.messages.append(f"{note.what} ({note.where})")
        if max_errors is not None and position.counts["skipped"] > max_errors:
            writer.commit()
            raise DataError(
                f"more than data.max_errors={max_errors} rows cannot be read; the last one: {note.what}",
                note.where,
                f"see {writer.path / BAD_ROWS}; repair the source, or raise data.max_errors",
            )
    elif note.rule:
        position.removed[note.rule] = position.removed.get(note.rule, 0) + 1


def _check(writer: StoreWriter, piece: Piece, ids: np.ndarray) -> None:
    """See for the first documents whether their ids give back the very text; of a long one the start."""
    position = writer.position
    if position.open_exact:
        back = writer.tokenizer.decode(ids)
        if back != piece.text:
            position.open_exact = False
            position.keep(ROUND_TRIP, _difference(piece.text, back), MAX_EXAMPLES)
    if piece.last or position.text_bytes >= CHECKED_BYTES:
        position.checked += 1
        position.exact += position.open_exact
        position.open_exact = True


def _difference(text: str, back: str) -> str:
    """Where two texts part, for a human."""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), None)
    place = min(len(text), len(back)) if place is None else place
    part = slice(max(0, place - 15), place + 25)
    return f"{text[part]!r} comes back as {back[part]!r}"


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
