"""`prepare`: from a data source and a tokenizer to a token store, cached by content.

Many processes may prepare the same thing at once: one does the work under a lock, the others wait and
find it ready. A killed preparation goes on from its journal and gives the same files, byte by byte.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmtrain.data.cache import HashMemo
from llmtrain.data.clean.corpus import CleanedCorpus
from llmtrain.data.corpus import Corpus, Source, hash_texts
from llmtrain.data.fill import Poll, Progress, Report, document_pieces, fill
from llmtrain.data.pieces import cut, word_border
from llmtrain.data.report import PrepareReport, join_reports, store_report, store_warnings
from llmtrain.data.sources import SOURCES
from llmtrain.data.store import FORMAT, DamagedStore, TokenStore, View, split, whole
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.data.tokenizer_build import TOKENIZERS, Trained, first_bytes, special_settings
from llmtrain.data.writer import BAD_ROWS, StoreWriter
from llmtrain.schema.data import DataConfig, MixtureData, OnError
from llmtrain.schema.tokenizer import TokenizerConfig
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import atomic_write, cache_directory, explain_full_disk, file_lock, write_json


@dataclass
class Prepared:
    """Data that is ready for training.

    Attributes:
        tokenizer: that made the ids.
        trains: texts to train on, by the name of the source; "" where there is only one, without a name.
        weights: of the sources, in this order; None where they are read equally often.
        validations: texts to validate on, by name.
        report: what came out.
    """

    tokenizer: Tokenizer
    trains: dict[str, View]
    weights: list[float] | None
    validations: dict[str, View]
    report: PrepareReport

    @property
    def train(self) -> View:
        """The text to train on, where it is no mixture."""
        (view,) = self.trains.values()
        return view

    @property
    def validation(self) -> View | None:
        """The text to validate on, where there is no more than one."""
        assert len(self.validations) < 2, list(self.validations)
        return next(iter(self.validations.values()), None)

    def identity(self) -> dict[str, str | None]:
        """Hashes that change with any token, any border and the tokenizer."""
        return {
            "tokenizer": self.tokenizer.sha256,
            "train": _identity(self.trains),
            "validation": _identity(self.validations),
        }


def _identity(views: Mapping[str, View]) -> str | None:
    if not views or list(views) == [""]:
        return next((view.identity() for view in views.values()), None)
    return hash_texts(*(part for name, view in views.items() for part in (name, view.identity())))[:16]


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
        data: the source, or a mixture of several.
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
    configs = data.sources if isinstance(data, MixtureData) else {"": data}
    apart = data.validation if isinstance(data, MixtureData) else {}
    opened = {name: (work.open(config), config) for name, config in configs.items()}
    made = tokenizer
    if not isinstance(made, Tokenizer):
        made = work.tokenizer(made, [(source.train, config) for source, config in opened.values()])
    trains: dict[str, View] = {}
    validations: dict[str, View] = {}
    reports: dict[str, PrepareReport] = {}
    for name, (source, config) in opened.items():
        trains[name], held_out, reports[name] = work.text(source, config, made, 0 if apart else None, seed)
        if held_out is not None:
            validations[name] = held_out
    warnings = list(work.warnings)
    for name, config in apart.items():
        validations[name], _, found = work.text(work.open(config), config, made, 0.0, seed)
        warnings += found.warnings
    weights = [config.weight for config in configs.values() if config.weight is not None]
    seconds = time.monotonic() - started
    summary = reports[""] if list(reports) == [""] else join_reports(reports, seconds)
    summary.seconds = seconds
    summary.validation_tokens = sum(view.num_tokens for view in validations.values())
    summary.warnings = warnings + summary.warnings
    return Prepared(made, trains, weights or None, validations, summary)


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

    def open(self, config: DataConfig) -> Source:
        """The corpora of a source, cleaned as its config says."""
        source: Source = self.builders[type(config)](config)
        if config.clean is None:
            return source
        cleaned = [corpus and CleanedCorpus(corpus, config.clean) for corpus in vars(source).values()]
        return Source(*cleaned)

    def tokenizer(self, config: TokenizerConfig, corpora: Sequence[tuple[Corpus, DataConfig]]) -> Tokenizer:
        """Build the tokenizer; a trained one is kept by the content that it was trained on."""
        builder = self.builders[type(config)]
        if not isinstance(builder, Trained):
            made: Tokenizer = builder(config)
            return made
        limits = [data.max_tokens if builder.per_character else None for _, data in corpora]
        settings = json.dumps(asdict(config), sort_keys=True)
        parts = [str(FORMAT), settings]
        for (corpus, data), limit in zip(corpora, limits, strict=True):
            parts += [self.fingerprint(corpus), data.on_error.value, str(limit)]
            parts += [str(data.weight)] if len(corpora) > 1 else []
        path = self.cache / "tokenizers" / f"{hash_texts(*parts)[:32]}.json"
        if not path.exists():
            with explain_full_disk(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_suffix(".lock"), self._waiting(corpora[0][0])):
                if not path.exists():
                    texts = self._mixed_texts(config, corpora, limits)
                    atomic_write(path, builder(config, texts).to_json())
        text, settings_of = path.read_text(encoding="utf-8"), special_settings(config)
        return Tokenizer.from_json(text, kind=config.kind, settings=settings_of)

    def _mixed_texts(
        self,
        config: TokenizerConfig,
        corpora: Sequence[tuple[Corpus, DataConfig]],
        limits: Sequence[int | None],
    ) -> Iterator[str]:
        """Text to train a tokenizer on; of several corpora each gives its share of `train_bytes`."""
        weights = [data.weight or 1.0 for _, data in corpora]
        for (corpus, data), limit, weight in zip(corpora, limits, weights, strict=True):
            texts = self._texts(corpus, data.on_error, limit)
            if len(corpora) > 1 and hasattr(config, "train_bytes"):
                texts = first_bytes(texts, int(config.train_bytes * weight / sum(weights)))
            yield from texts

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

    def text(
        self, source: Source, data: DataConfig, tokenizer: Tokenizer, fraction: float | None, seed: int
    ) -> tuple[View, View | None, PrepareReport]:
        """A source's text to train on, what is held out of it or its own text to validate on, the report.

        Args:
            source: the corpora.
            data: their config.
            tokenizer: makes the ids.
            fraction: that is held out, if not that of the config.
            seed: of the choice of what is held out.
        """
        started = time.monotonic()
        fraction = data.validation_fraction if fraction is None else fraction
        store, cached = self.store(source.train, tokenizer, data, data.max_tokens)
        warnings = store_warnings(store, source.train.name)
        if source.validation is None:
            train, validation = split(store, fraction, seed)
        else:
            held_out, _ = self.store(source.validation, tokenizer, data, None)
            train, validation = whole(store), whole(held_out)
            warnings += store_warnings(held_out, source.validation.name)
            if held_out.manifest["identity"]["source"] == store.manifest["identity"]["source"]:
                warnings.append("the validation text is the training text")
        if validation is not None and validation.num_tokens < 2:  # nothing in it that could be predicted
            validation = None
        if validation is None and fraction > 0:
            warnings.append("the text is too short to hold out a part for validation")
        report = store_report(store, cached, time.monotonic() - started)
        report.train_tokens = train.num_tokens
        report.validation_tokens = validation.num_tokens if validation else 0
        report.warnings = warnings
        return train, validation, report

    def store(
        self, corpus: Corpus, tokenizer: Tokenizer, data: DataConfig, max_tokens: int | None
    ) -> tuple[TokenStore, bool]:
        """The store of a corpus, and whether it was there already."""
        fingerprint = self.fingerprint(corpus)
        on_error = data.on_error.value
        key = hash_texts(str(FORMAT), fingerprint, tokenizer.sha256, on_error, str(max_tokens))[:32]
        path = self.cache / "stores" / key
        try:
            return self._checked(TokenStore.open(path), data), True
        except DamagedStore:
            pass
        with explain_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(f"{key}.lock"), self._waiting(corpus)):
            try:
                return self._checked(TokenStore.open(path), data), True
            except DamagedStore:
                if path.exists():
                    shutil.rmtree(path)
            identity = {
                "source": fingerprint,
                "tokenizer": tokenizer.sha256,
                "max_tokens": max_tokens,
                "on_error": on_error,
            }
            with StoreWriter(path.with_name(f"{key}.partial"), tokenizer, identity) as writer:
                fill(writer, corpus, data, max_tokens=max_tokens, poll=self.poll, report=self.report)
                writer.publish(path)
            store = TokenStore.open(path)
            write_json(path.with_name(f"{key}.report.json"), store_report(store, False, 0.0).plain())
        return store, False

    def _checked(self, store: TokenStore, data: DataConfig) -> TokenStore:
        """The store, if no more rows were skipped for it than may be.

        Raises:
            DataError: more were.
        """
        skipped = store.manifest["counts"].get("skipped", 0)
        if data.max_errors is not None and skipped > data.max_errors:
            raise DataError(
                f"{skipped} rows cannot be read, and data.max_errors={data.max_errors}",
                str(store.path / BAD_ROWS),
                "repair the source, or raise data.max_errors",
            )
        return store

    def _waiting(self, corpus: Corpus) -> Poll:
        def poll() -> None:
            self.poll()
            self.report(Progress("waiting", corpus.name))

        return poll
