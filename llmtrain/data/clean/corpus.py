"""A corpus whose documents are cleaned on their way to the tokenizer."""

from __future__ import annotations

import json
import unicodedata
from collections import deque
from collections.abc import Iterator

from llmtrain.data.clean import duplicates, html
from llmtrain.data.clean.processes import clean_batches
from llmtrain.data.clean.steps import EXAMPLE, Cleaned, Cleaner, removal
from llmtrain.data.corpus import Corpus, Document, HashFile, hash_texts, shorten
from llmtrain.schema.clean import CleanConfig, UnicodeForm
from llmtrain.schema.load import dump

VERSION = 1
"""Of the steps; with another one a corpus is cleaned anew."""

BATCH_CHARACTERS = 1 << 18
"""Text that one process cleans at a time."""

BATCH_DOCUMENTS = 256
"""Documents that it cleans at a time at most."""


class CleanedCorpus(Corpus):
    """The documents of another corpus, cleaned; removed ones are still there, and say by which rule.

    A document is held in memory as a whole while it is cleaned.

    Args:
        corpus: the documents as they are.
        config: the steps.

    Raises:
        ConfigError: a step needs a package that is not installed.
    """

    def __init__(self, corpus: Corpus, config: CleanConfig) -> None:
        self.corpus = corpus
        self.config = config
        self.name = corpus.name
        self._cleaner = Cleaner(config)
        what = [str(VERSION), json.dumps(dump(config), sort_keys=True)]
        if config.html:
            what.append(html.version())
        if config.unicode is not UnicodeForm.none:
            what.append(unicodedata.unidata_version)
        if self._cleaner.near is not None:
            what.append(duplicates.version())
        self._what = hash_texts(*what)
        if corpus.remote_key is not None:
            self.remote_key = hash_texts(self._what, corpus.remote_key)

    def fingerprint(self, hash_file: HashFile) -> str:
        return hash_texts("cleaned", self._what, self.corpus.fingerprint(hash_file))

    def progress(self) -> float | None:
        return self.corpus.progress()

    def documents(self) -> Iterator[Document]:
        exact = duplicates.ExactDuplicates()
        near = duplicates.NearDuplicates(self._cleaner.near) if self._cleaner.near is not None else None
        for document, cleaned in self._cleaned():
            if cleaned is None:
                yield document
                continue
            where, text = document.where, cleaned.text
            if cleaned.digest and text.strip():
                first = exact.first(cleaned.digest, where)
                if first is not None:
                    cleaned = removal("exact duplicate", f"of {first}: {shorten(text, EXAMPLE)}")
            if near is not None and cleaned.signature and text.strip():
                found = near.first(cleaned.signature, where)
                if found is not None:
                    told = f"similarity {found[1]:.2f} to {found[0]}: {shorten(text, EXAMPLE)}"
                    cleaned = removal("near duplicate", told)
            parts = () if cleaned.removed else (cleaned.text,)
            yield Document(
                where, parts, removed=cleaned.removed, counts=cleaned.counts, examples=cleaned.examples
            )

    def _cleaned(self) -> Iterator[tuple[Document, Cleaned | None]]:
        """Documents with what became of them; None for rows that cannot be read."""
        batches: deque[list[Document]] = deque()

        def texts() -> Iterator[list[str]]:
            for batch in _batches(self.corpus.documents()):
                batches.append(batch)
                yield [one.text for one in batch if one.error is None]

        for results in clean_batches(self._cleaner, texts()):
            answers = iter(results)
            for document in batches.popleft():
                yield document, None if document.error is not None else next(answers)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about `BATCH_CHARACTERS`; their texts are read here, one by one."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if document.error is None:
            text = document.text
            document = Document(document.where, (text,))
            size += len(text)
        batch.append(document)
        if size >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
