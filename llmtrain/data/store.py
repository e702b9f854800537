"""The token store: memory-mapped token files that training reads, and views on parts of them.

A store is a directory:

- `shard-00000.bin`, ...: token ids, little endian, uint16 or uint32; each document is followed by the
  end token (unless `data.max_tokens` cut it short).
- `ends.npy`: (documents,) int64, where each document ends in the stream of tokens, end token included.
- `bytes.npy`: (documents,) int64, bytes of UTF-8 of each document.
- `tokenizer.json`: what made the ids.
- `manifest.json`: format, counts, hashes; written last.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.tokenizer import Tokenizer
from llmtrain.utils.io import file_sha256, read_json
from llmtrain.utils.seed import Permutation

FORMAT = 1
"""Version of the layout; another one is prepared anew."""

DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
"""Number formats of the token files."""


class DamagedStore(Exception):
    """A directory is no complete token store; it has to be prepared anew."""


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.bin"


class TokenStore:
    """A finished token store, opened for reading.

    Attributes:
        path: its directory.
        manifest: what `manifest.json` says.
        num_tokens: tokens, end tokens included.
        num_documents: documents.
        end_id: id that ends a document.
        ends: (documents,) int64, end of each document in the stream, end token included.
        bytes: (documents,) int64, UTF-8 bytes of each document.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.num_tokens: int = manifest["tokens"]
        self.num_documents: int = manifest["documents"]
        self.end_id: int = manifest["end_id"]
        self.dtype = DTYPES[manifest["dtype"]]
        self.shard_tokens: int = manifest["shard_tokens"]
        # plain arrays over the mapped files: the class np.memmap makes every small read slow
        self.ends = np.load(path / "ends.npy", mmap_mode="r").view(np.ndarray)
        self.bytes = np.load(path / "bytes.npy", mmap_mode="r").view(np.ndarray)
        self._shards = [
            np.memmap(path / shard["name"], self.dtype, mode="r").view(np.ndarray)
            for shard in manifest["shards"]
        ]

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """Open a store and check that its files have the sizes of the manifest.

        Raises:
            DamagedStore: it is not there, not complete, or of another format.
        """
        path = Path(path)
        try:
            manifest = read_json(path / "manifest.json")
            if manifest["format"] != FORMAT:
                raise DamagedStore(f"{path} has format {manifest['format']}, not {FORMAT}")
            for shard in manifest["shards"]:
                size = (path / shard["name"]).stat().st_size
                if size != shard["bytes"]:
                    raise DamagedStore(f"{path / shard['name']} has {size} bytes, not {shard['bytes']}")
            store = cls(path, manifest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedStore(f"{path} is no token store: {error}") from error
        num = store.num_documents
        if store.ends.shape != (num,) or store.bytes.shape != (num,) or store._held() != store.num_tokens:
            raise DamagedStore(f"{path} does not hold what its manifest says")
        return store

    def _held(self) -> int:
        return sum(len(shard) for shard in self._shards)

    def verify(self) -> None:
        """Compare every shard with its SHA-256 (about 1 GB/s).

        Raises:
            DamagedStore: a shard has changed.
        """
        for shard in self.manifest["shards"]:
            if file_sha256(self.path / shard["name"]) != shard["sha256"]:
                raise DamagedStore(f"{self.path / shard['name']} has changed since it was written")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        text = (self.path / "tokenizer.json").read_text(encoding="utf-8")
        return Tokenizer.from_json(text, end_token=self.manifest["end_token"])

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) of the stream, of the store's dtype; a view on the file where it can be."""
        assert 0 <= start <= end <= self.num_tokens, (start, end, self.num_tokens)
        size = self.shard_tokens
        parts = [
            self._shards[i][max(start - i * size, 0) : end - i * size]
            for i in range(start // size, -(-end // size))
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Tokens at positions (n,) of the stream, as (n,) int64."""
        if len(self._shards) == 1:
            return self._shards[0][positions].astype(np.int64)
        result = np.empty(len(positions), np.int64)
        shards, places = np.divmod(positions, self.shard_tokens)
        for i in np.unique(shards):
            chosen = shards == i
            result[chosen] = self._shards[i][places[chosen]]
        return result

    def start_of(self, document: int) -> int:
        """Where a document starts in the stream."""
        return int(self.ends[document - 1]) if document else 0

    def bytes_before(self, document: int, position: int) -> int:
        """Bytes of text of a document before a position of the stream; a cut text is decoded for it."""
        start, end = self.start_of(document), int(self.ends[document])
        if position <= start:
            return 0
        if position >= end:
            return int(self.bytes[document])
        if position - start <= end - position:
            return self._count_bytes(start, position)
        return int(self.bytes[document]) - self._count_bytes(position, end)

    def _count_bytes(self, start: int, end: int, block: int = 1 << 20) -> int:
        if not self.tokenizer.byte_exact:
            return self.tokenizer.count_bytes(self.read(start, end))
        return sum(
            self.tokenizer.count_bytes(self.read(i, min(i + block, end))) for i in range(start, end, block)
        )


class View:
    """A part of a store: spans of tokens, each inside one document, in the order of the store.

    Args:
        store: the store.
        starts: (spans,) int64, first token of each span.
        ends: (spans,) int64, token after the last of each span; none is empty.
    """

    def __init__(self, store: TokenStore, starts: np.ndarray, ends: np.ndarray) -> None:
        self.store = store
        self.starts = np.ascontiguousarray(starts, dtype=np.int64)
        self.ends = np.ascontiguousarray(ends, dtype=np.int64)
        assert (self.starts < self.ends).all(), "an empty span"

    @property
    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """First token and token after the last of each span: two (spans,) int64 arrays."""
        return self.starts, self.ends

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each span, (spans,) int64."""
        return self.ends - self.starts

    @cached_property
    def num_tokens(self) -> int:
        """Tokens in the view, end tokens included."""
        return int(self.lengths.sum())

    @property
    def num_documents(self) -> int:
        """Documents that are in the view, whole or in part."""
        return len(self.starts)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 of the text in the view; where it cuts a document, that part is decoded."""
        store = self.store
        documents = np.searchsorted(store.ends, self.starts, side="right")
        ends = np.asarray(store.ends[documents])
        begins = np.where(documents > 0, store.ends[np.maximum(documents - 1, 0)], 0)
        whole = (self.starts == begins) & (self.ends == ends)
        total = int(store.bytes[documents[whole]].sum())
        for i in np.flatnonzero(~whole):
            document = int(documents[i])
            total += store.bytes_before(document, int(self.ends[i]))
            total -= store.bytes_before(document, int(self.starts[i]))
        return total

    @cached_property
    def key(self) -> str:
        """Hash of the spans: equal views of one store have equal keys."""
        return hashlib.sha256(self.starts.tobytes() + self.ends.tobytes()).hexdigest()[:16]

    def identity(self) -> str:
        """Hash of the tokens: equal views of equal stores have equal ones, wherever they lie."""
        source = self.store.manifest["identity"]["source"]
        tokenizer = self.store.manifest["identity"]["tokenizer"]
        return hashlib.sha256(f"{source} {tokenizer} {self.key}".encode()).hexdigest()[:16]

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens [start, end) of the STORE's stream (the numbers that `spans` are in)."""
        return self.store.read(start, end)


def whole(store: TokenStore) -> View:
    """All documents of a store."""
    ends = np.asarray(store.ends)
    return View(store, np.concatenate([[0], ends[:-1]]), ends)


def split(store: TokenStore, fraction: float, seed: int) -> tuple[View, View | None]:
    """Training and validation part of a store.

    Whole documents, drawn in an order of `seed`, go to validation as long as they fit into `fraction` of
    the tokens; what does not fit is passed over. Where none fits (one document, or a few big ones) the
    end of the text is taken. Of one single document of N tokens (its end token not counted, which has
    nothing behind it to separate from) training takes the first int(N * (1 - fraction)), as nanoGPT does.

    Returns:
        the training view, and the validation view or None where `fraction` is 0 or leaves nothing.
    """
    every = whole(store)
    if fraction <= 0:
        return every, None
    chosen = _draw(every.lengths, int(fraction * store.num_tokens), seed)
    if chosen.any():
        return _pick(every, ~chosen), _pick(every, chosen)
    last = store.num_tokens
    if store.num_documents == 1 and int(store.read(last - 1, last)[0]) == store.end_id:
        last -= 1
    border = int(last * (1 - fraction))
    if border in (0, last):
        return every, None
    starts, ends = every.starts, np.minimum(every.ends, last)
    before, after = starts < border, ends > border
    train = View(store, starts[before], np.minimum(ends[before], border))
    return train, View(store, np.maximum(starts[after], border), ends[after])


def _pick(view: View, chosen: np.ndarray) -> View:
    return View(view.store, view.starts[chosen], view.ends[chosen])


def _draw(lengths: np.ndarray, budget: int, seed: int) -> np.ndarray:
    """Which documents go to validation, (documents,) bool."""
    num = len(lengths)
    chosen = np.zeros(num, dtype=bool)
    shortest = int(lengths.min())
    order = Permutation(num, seed, "validation")(np.arange(num))
    for document in order.tolist():
        if budget < shortest:
            break
        length = int(lengths[document])
        if length <= budget:
            chosen[document] = True
            budget -= length
    return chosen
