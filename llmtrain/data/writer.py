"""`StoreWriter`: writes a token store so that a killed preparation goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmtrain.data.store import DTYPES, FORMAT, shard_name
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.utils.io import (
    atomic_write,
    explain_full_disk,
    file_sha256,
    fsync_directory,
    read_json,
    write_json,
)

SHARD_TOKENS = 1 << 28
"""Tokens in a shard: 512 MB of uint16."""

SIDES = ("ends", "bytes")
"""Numbers of each document, written beside the tokens."""

BAD_ROWS = "bad_rows.jsonl"
"""File of the rows that could not be read, where there are any: place, reason and what stands there."""


@dataclass
class Position:
    """How far a preparation has come; the content of the journal.

    Attributes:
        pieces: pieces of the source that are done.
        tokens: tokens written, those of an open document too.
        documents: complete documents.
        text_bytes: UTF-8 bytes of text done, those of an open document too.
        open_bytes: bytes of text of the open document.
        open_tokens: tokens of the open document.
        counts: whatever was counted on the way (empty, skipped, unknown, ...).
        messages: the first faults that were skipped.
        removed: documents that cleaning left out, by rule.
        changed: places that cleaning changed, by rule.
        examples: a few examples of each rule.
        bad_bytes: size of the file of rows that cannot be read.
        checked: complete documents of which it was checked whether they come back from their ids.
        exact: those of them that do.
        open_exact: whether the open document has come back so far.
    """

    pieces: int = 0
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    open_bytes: int = 0
    open_tokens: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    bad_bytes: int = 0
    checked: int = 0
    exact: int = 0
    open_exact: bool = True

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        self.counts[name] = self.counts.get(name, 0) + number

    def keep(self, name: str, example: str, limit: int) -> None:
        """Keep an example, if there are not enough yet."""
        kept = self.examples.setdefault(name, [])
        if len(kept) < limit:
            kept.append(example)


class StoreWriter:
    """Appends tokens to the shards of an unfinished store.

    Files are only ever appended to. `commit` makes what is written durable and then writes the journal;
    opening the same directory again cuts every file back to the journal.

    Args:
        path: directory of the unfinished store.
        tokenizer: what makes the ids.
        identity: what the content depends upon; an unfinished store of another identity is thrown away.
        shard_tokens: tokens in a shard; default: `SHARD_TOKENS`.

    Raises:
        DiskFullError: there is no space left (any method).
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, identity: Mapping[str, Any], shard_tokens: int | None = None
    ) -> None:
        shard_tokens = shard_tokens or SHARD_TOKENS
        self.path = path
        self.tokenizer = tokenizer
        self.dtype = DTYPES[tokenizer.dtype.name]
        self.identity = {**identity, "shard_tokens": shard_tokens, "dtype": tokenizer.dtype.name}
        self.shard_tokens = shard_tokens
        self.position = self._journalled() or self._fresh()
        self._shard: BinaryIO | None = None
        self._sides = {name: self._open(f"{name}.raw", 8 * self.position.documents) for name in SIDES}
        self._bad_rows = self._open(BAD_ROWS, self.position.bad_bytes)
        self._cut_back()

    def _cut_back(self) -> None:
        """Remove what a killed process left beyond the journal; the caller's lock keeps others away."""
        for leftover in self.path.glob(".*.tmp"):  # of an atomic write that was killed before its rename
            leftover.unlink()
        full, rest = divmod(self.position.tokens, self.shard_tokens)
        sizes = [self.shard_tokens] * full + ([rest] if rest else [])
        for i, file in enumerate(sorted(self.path.glob("shard-*.bin"))):
            if i < len(sizes):
                os.truncate(file, sizes[i] * self.dtype.itemsize)
            else:
                file.unlink()

    def _journalled(self) -> Position | None:
        """The journal's position, if all that it counts is there."""
        try:
            journal = read_json(self.path / "journal.json")
            position = Position(**journal["position"])
            complete = journal["identity"] == self.identity and self._has(position)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return position if complete else None

    def _has(self, position: Position) -> bool:
        sides = [(self.path / f"{name}.raw").stat().st_size >= 8 * position.documents for name in SIDES]
        full, rest = divmod(position.tokens, self.shard_tokens)
        needed = [self.shard_tokens] * full + ([rest] if rest else [])
        sizes = [(self.path / shard_name(i)).stat().st_size for i in range(len(needed))]
        sides.append((self.path / BAD_ROWS).stat().st_size >= position.bad_bytes)
        return all(sides) and all(
            size >= tokens * self.dtype.itemsize for size, tokens in zip(sizes, needed, strict=True)
        )

    def _fresh(self) -> Position:
        if self.path.exists():
            shutil.rmtree(self.path)
        with explain_full_disk(self.path):
            self.path.mkdir(parents=True)
        return Position()

    def _open(self, name: str, size: int) -> BinaryIO:
        """Open a file to append to, cut to `size` bytes."""
        file = open(self.path / name, "ab")  # noqa: SIM115 (it stays open)
        file.truncate(size)
        return file

    def append(self, tokens: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> None:
        """Add tokens and the documents that end among them.

        Args:
            tokens: (n,) ids, end tokens included.
            ends: (d,) int64, where documents end in the stream of the whole store.
            sizes: (d,) int64, UTF-8 bytes of these documents.
        """
        with explain_full_disk(self.path):
            start = 0
            while start < len(tokens):
                number, inside = divmod(self.position.tokens, self.shard_tokens)
                if self._shard is None:
                    self._shard = self._open(shard_name(number), inside * self.dtype.itemsize)
                part = tokens[start : start + self.shard_tokens - inside]
                self._shard.write(part.astype(self.dtype, copy=False).tobytes())
                self.position.tokens += len(part)
                start += len(part)
                if inside + len(part) == self.shard_tokens:
                    self._sync(self._shard)
                    self._shard.close()
                    self._shard = None
            self._sides["ends"].write(ends.astype("<i8").tobytes())
            self._sides["bytes"].write(sizes.astype("<i8").tobytes())
            self.position.documents += len(ends)

    def write_bad_row(self, row: Mapping[str, str]) -> None:
        """Add a row that cannot be read to their file."""
        with explain_full_disk(self.path):
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
            self.position.bad_bytes += self._bad_rows.write(line)

    def commit(self) -> None:
        """Make everything up to now durable."""
        with explain_full_disk(self.path):
            for file in (self._shard, self._bad_rows, *self._sides.values()):
                if file is not None:
                    self._sync(file)
            write_json(
                self.path / "journal.json", {"identity": self.identity, "position": asdict(self.position)}
            )

    @staticmethod
    def _sync(file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())

    def publish(self, target: Path) -> None:
        """Write the manifest and rename the directory to its final name; the writer ends here."""
        self.commit()
        self.close()
        with explain_full_disk(self.path):
            for name in SIDES:
                values: np.ndarray = np.empty(0, "<i8")
                if self.position.documents:
                    values = np.memmap(self.path / f"{name}.raw", "<i8", mode="r")
                with open(self.path / f"{name}.npy", "wb") as file:
                    np.save(file, values)
                    self._sync(file)
            if not self.position.bad_bytes:
                (self.path / BAD_ROWS).unlink()
            atomic_write(self.path / "tokenizer.json", self.tokenizer.to_json())
            write_json(self.path / "manifest.json", self._manifest())
            fsync_directory(self.path)
            os.rename(self.path, target)
            fsync_directory(target.parent)
        for name in ("ends.raw", "bytes.raw", "journal.json"):
            (target / name).unlink(missing_ok=True)

    def _manifest(self) -> dict[str, Any]:
        shards = [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": file_sha256(file)}
            for file in sorted(self.path.glob("shard-*.bin"))
        ]
        position = self.position
        return {
            "format": FORMAT,
            "dtype": self.tokenizer.dtype.name,
            "shard_tokens": self.shard_tokens,
            "tokens": position.tokens,
            "documents": position.documents,
            "bytes": position.text_bytes,
            "counts": position.counts,
            "messages": position.messages,
            "removed": position.removed,
            "changed": position.changed,
            "examples": position.examples,
            "round_trip": [position.exact, position.checked],
            "vocab_size": self.tokenizer.vocab_size,
            "end_id": self.tokenizer.end_id,
            "end_token": self.tokenizer.end_token,
            "identity": self.identity,
            "shards": shards,
        }

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; what was not committed is cut off when the work is taken up again."""
        for file in (self._shard, self._bad_rows, *self._sides.values()):
            if file is not None:
                with explain_full_disk(self.path):
                    file.close()
        self._shard = None
