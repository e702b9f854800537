"""`prepare`: from a data source and a tokenizer to a token store, cached by content.

Many processes may prepare the same thing at once: one does the work under a lock, the others wait and
find it ready. A killed preparation goes on from its journal and gives the same files, byte by byte.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.data.cache import HashMemo
from llmtrain.data.corpus import Corpus, Source, hash_texts
from llmtrain.data.fill import Poll, Progress, Report, document_pieces, fill
from llmtrain.data.pieces import cut, word_border
from llmtrain.data.sources import SOURCES
from llmtrain.data.store import FORMAT, DamagedStore, TokenStore, View, split, whole
from llmtrain.data.tokenizer import TOKENIZERS, Tokenizer, Trained
from llmtrain.data.writer import StoreWriter
from llmtrain.schema.data import DataConfig, OnError
from llmtrain.schema.tokenizer import TokenizerConfig
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import atomic_write, cache_directory, explain_full_disk, file_lock


@dataclass
class PrepareReport:
    """What came out of a preparation. Numbers are of the training source, before the split.

    Attributes:
        documents: documents in the store.
        tokens: tokens in the store, end tokens included.
        bytes: UTF-8 bytes of text.
        bytes_per_token: bytes of text per token.
        empty: documents without any text; they are left out.
        skipped: rows that could not be read (`data.on_error=skip`).
        unknown: tokens that stand for characters or words that the tokenizer does not know.
        seconds: time that it all took.
        cached: whether the store was there already.
        path: directory of the store.
        vocab_size: of the tokenizer.
        train_tokens: tokens in the training view.
        validation_tokens: tokens in the validation view, 0 where there is none.
        warnings: what a human should know, one sentence each.
    """

    documents: int
    tokens: int
    bytes: int
    bytes_per_token: float
    empty: int
    skipped: int
    unknown: int
    seconds: float
    cached: bool
    path: str
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    warnings: list[str] = field(default_factory=list)


@dataclass
class Prepared:
    """Data that is ready for training."""

    tokenizer: Tokenizer
    train: View
    validation: View | None
    report: PrepareReport

    def identity(self) -> dict[str, str | None]:
        """Hashes that change with any token, any border and the tokenizer."""
        return {
            "tokenizer": self.tokenizer.sha256,
            "train": self.train.identity(),
            "validation": self.validation.identity() if self.validation is not None else None,
        }


def prepare(
    data: DataConfig,
    tokenizer: TokenizerConfig | Tokenizer,
    *,
    seed: int,
    builders: Mapping[type, Callable[..., Any]] | None = None,
    poll: Poll = lambda: None,
    report: Report | None = None,
    cache: Path | None = None,
) -> Prepared:
    """Read, clean and tokenise a data source, or find it prepared.

    Args:
        data: the source.
        tokenizer: what makes the ids, or a tokenizer that is there already.
        seed: of the choice of validation documents.
        builders: config dataclass -> builder; default: `SOURCES` and `TOKENIZERS`.
        poll: called often; may raise to give up (a stop signal).
        report: told of the progress a few times a second at most.
        cache: directory of all that is kept; default: `cache_directory()`.

    Raises:
        DataError: the source or a row of it cannot be read.
        DiskFullError: there is no space left.
    """
    started = time.monotonic()
    work = _Work(builders or {**SOURCES, **TOKENIZERS}, cache or cache_directory(), poll, report)
    source: Source = work.builders[type(data)](data)
    made = tokenizer if isinstance(tokenizer, Tokenizer) else work.tokenizer(tokenizer, source.train, data)
    store, cached = work.store(source.train, made, data.on_error, data.max_tokens)
    if source.validation is None:
        train, validation = split(store, data.validation_fraction, seed)
        warnings = _warnings(store, source.train.name)
    else:
        held_out, _ = work.store(source.validation, made, data.on_error, None)
        train, validation = whole(store), whole(held_out)
        warnings = _warnings(store, source.train.name) + _warnings(held_out, source.validation.name)
        if held_out.manifest["identity"]["source"] == store.manifest["identity"]["source"]:
            warnings.append("the validation text is the training text")
    if validation is not None and validation.num_tokens < 2:  # nothing in it that could be predicted
        validation = None
    counts = store.manifest["counts"]
    num_bytes = store.manifest["bytes"]
    summary = PrepareReport(
        documents=store.num_documents,
        tokens=store.num_tokens,
        bytes=num_bytes,
        bytes_per_token=num_bytes / store.num_tokens,
        empty=counts.get("empty", 0),
        skipped=counts.get("skipped", 0),
        unknown=counts.get("unknown", 0),
        seconds=time.monotonic() - started,
        cached=cached,
        path=str(store.path),
        vocab_size=made.vocab_size,
        train_tokens=train.num_tokens,
        validation_tokens=validation.num_tokens if validation else 0,
        warnings=work.warnings + warnings,
    )
    if validation is None and data.validation_fraction > 0:
        summary.warnings.append("the text is too short to hold out a part for validation")
    return Prepared(made, train, validation, summary)


def _warnings(store: TokenStore, name: str) -> list[str]:
    """What was left out or not understood, in sentences."""
    counts, total = store.manifest["counts"], store.num_tokens
    lines = []
    if skipped := counts.get("skipped", 0):
        examples = "; ".join(store.manifest["messages"])
        lines.append(f"{name}: {skipped} unreadable rows were skipped, the first: {examples}")
    if empty := counts.get("empty", 0):
        lines.append(f"{name}: {empty} empty documents were left out")
    if unknown := counts.get("unknown", 0):
        lines.append(f"{name}: {unknown} of {total} tokens are unknown to the tokenizer")
    if lost := counts.get("lost", 0):
        lines.append(f"{name}: {lost} documents with text gave no token at all")
    return lines


def _seldom(report: Report, seconds: float = 0.2) -> Report:
    """Pass a report on if the last one is some time ago."""
    last = -seconds

    def seldom(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            report(progress)

    return seldom


class _Work:
    """One call of `prepare`: its cache and its callbacks."""

    def __init__(
        self, builders: Mapping[type, Callable[..., Any]], cache: Path, poll: Poll, report: Report | None
    ) -> None:
        self.builders = builders
        self.cache = cache
        self._hash_file = HashMemo(cache)
        self._fingerprints: dict[Corpus, str] = {}
        self.warnings: list[str] = []
        self.poll = poll
        self.report = _seldom(report) if report else (lambda progress: None)

    def fingerprint(self, corpus: Corpus) -> str:
        """The corpus's fingerprint, computed once."""
        if corpus not in self._fingerprints:
            key = corpus.remote_key
            compute = partial(corpus.fingerprint, self._hash_file)
            self._fingerprints[corpus] = compute() if key is None else self._last_seen(corpus, key, compute)
        return self._fingerprints[corpus]

    def _last_seen(self, corpus: Corpus, key: str, compute: Callable[[], str]) -> str:
        """A fingerprint from the network, or where that fails the one that was seen last."""
        note = self.cache / "remote" / key
        try:
            fingerprint = compute()
        except DataError as error:
            if not note.exists():
                raise
            what = error.problems[0].what
            self.warnings.append(f"{corpus.name}: the version that was seen last is taken, for {what}")
            return note.read_text(encoding="utf-8")
        with explain_full_disk(note):
            note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(note, fingerprint)
        return fingerprint

    def tokenizer(self, config: TokenizerConfig, corpus: Corpus, data: DataConfig) -> Tokenizer:
        """Build the tokenizer; a trained one is kept by the content that it was trained on."""
        builder = self.builders[type(config)]
        if not isinstance(builder, Trained):
            made: Tokenizer = builder(config)
            return made
        limit = data.max_tokens if builder.per_character else None
        on_error = data.on_error
        settings = json.dumps(asdict(config), sort_keys=True)
        fingerprint = self.fingerprint(corpus)
        key = hash_texts(str(FORMAT), settings, fingerprint, on_error.value, str(limit))[:32]
        path = self.cache / "tokenizers" / f"{key}.json"
        if not path.exists():
            with explain_full_disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_suffix(".lock"), self._waiting(corpus)):
                if not path.exists():
                    texts = self._texts(corpus, on_error, limit)
                    atomic_write(path, builder(config, texts).to_json())
        return Tokenizer.from_json(path.read_text(encoding="utf-8"), kind=config.kind)

    def _texts(self, corpus: Corpus, on_error: OnError, limit: int | None) -> Iterator[str]:
        """Text to train a tokenizer on, in pieces, no more than `limit` characters."""
        done = 0
        for piece in document_pieces(corpus, partial(cut, border=word_border), on_error):
            text = piece.text if limit is None else piece.text[: limit - done]
            yield text
            done += len(text)
            self.poll()
            self.report(Progress("tokenizer", corpus.name, corpus.progress(), done))
            if done == limit:
                return

    def store(
        self, corpus: Corpus, tokenizer: Tokenizer, on_error: OnError, max_tokens: int | None
    ) -> tuple[TokenStore, bool]:
        """The store of a corpus, and whether it was there already."""
        fingerprint = self.fingerprint(corpus)
        key = hash_texts(str(FORMAT), fingerprint, tokenizer.sha256, on_error.value, str(max_tokens))[:32]
        path = self.cache / "stores" / key
        try:
            return TokenStore.open(path), True
        except DamagedStore:
            pass
        with explain_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(f"{key}.lock"), self._waiting(corpus)):
            try:
                return TokenStore.open(path), True
            except DamagedStore:
                if path.exists():
                    shutil.rmtree(path)
            identity = {
                "source": fingerprint,
                "tokenizer": tokenizer.sha256,
                "max_tokens": max_tokens,
                "on_error": on_error.value,
            }
            with StoreWriter(path.with_name(f"{key}.partial"), tokenizer, identity) as writer:
                fill(writer, corpus, on_error, max_tokens, poll=self.poll, report=self.report)
                writer.publish(path)
        return TokenStore.open(path), False

    def _waiting(self, corpus: Corpus) -> Poll:
        def poll() -> None:
            self.poll()
            self.report(Progress("waiting", corpus.name))

        return poll
