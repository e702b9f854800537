"""Data sets of the Hugging Face hub, or local folders that its `datasets` library understands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.data.corpus import Corpus, Document, HashFile, Source, hash_texts, row_text
from llmtrain.schema.data import HuggingFaceData
from llmtrain.utils.errors import DataError

NOT_FOUND = {"DatasetNotFoundError", "RepositoryNotFoundError", "EmptyDatasetError", "DataFilesNotFoundError"}
NO_NETWORK = {
    "ConnectionError",
    "ConnectError",
    "TransportError",
    "LocalEntryNotFoundError",
    "ConnectTimeout",
}
"""Names of exception classes; the libraries that define them are not imported for it."""


class HuggingFaceCorpus(Corpus):
    """One split of a data set, streamed.

    The `datasets` library is imported only when rows are wanted. It honours HF_HUB_OFFLINE, HF_HOME and
    the tokens that its user has set; code inside a data set is never run.
    """

    def __init__(self, name: str, subset: str | None, split: str, text_key: str) -> None:
        self.dataset = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
        self.subset = subset
        self.split = split
        self.text_key = text_key
        self.name = ":".join(part for part in (name, subset, split) if part)
        self._what = ("huggingface", subset or "", split, text_key)
        if not Path(self.dataset).is_dir():
            self.remote_key = hash_texts(*self._what, self.dataset)

    def fingerprint(self, hash_file: HashFile) -> str:
        folder = Path(self.dataset)
        if folder.is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path, folder))
            contents = (f"{path.relative_to(folder).as_posix()}:{hash_file(path)}" for path in files)
            return hash_texts(*self._what, *contents)
        builder = self._call("load_dataset_builder")
        return hash_texts(*self._what, self.dataset, str(builder.hash))

    def documents(self) -> Iterator[Document]:
        rows = iter(self._call("load_dataset", split=self.split, streaming=True))
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # of the network, of Parquet, of JSON: the library has no common class
                raise self._explain(error, f"{self.name}, after row {number}") from error
            number += 1
            where = f"{self.name}, row {number}"
            try:
                yield Document(where, (row_text(row, self.text_key, where),))
            except DataError as error:
                yield Document(where, error=error)

    def _call(self, function: str, **options: Any) -> Any:
        import datasets

        try:
            return getattr(datasets, function)(self.dataset, self.subset, **options)
        except Exception as error:
            raise self._explain(error, f"data.name={self.name}") from error

    def _explain(self, error: Exception, where: str) -> DataError:
        """The library's many kinds of errors in plain words."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "OfflineModeIsEnabled" in kinds or "offline" in str(error).lower():
            return DataError(
                f"offline mode is on and the data set is not on this machine: {text}",
                where,
                "unset HF_HUB_OFFLINE, or give a local folder as data.name",
            )
        if "GatedRepoError" in kinds:
            return DataError(
                f"the data set asks for your consent: {text}", where, "accept its terms and log in"
            )
        if kinds & {
            "DatasetNotFoundError",
            "RepositoryNotFoundError",
            "EmptyDatasetError",
            "DataFilesNotFoundError",
        }:
            return DataError(
                f"the data set was not found: {text}", where, "check data.name, or give a local folder"
            )
        if kinds & NO_NETWORK:
            return DataError(
                f"the hub cannot be reached: {text}",
                where,
                "check the network, or give a local folder as data.name",
            )
        return DataError(
            f"the data set cannot be read: {text}", where, "check data.name, data.subset and data.split"
        )


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)


def huggingface_source(config: HuggingFaceData) -> Source:
    """A split for training and, where named, one for validation.

    Raises:
        DataError: no data set is named.
    """
    if not config.name:
        raise DataError("no data set is named", "data.name", "set data.name=<name on the hub or folder>")
    name = config.name

    def corpus(split: str) -> HuggingFaceCorpus:
        return HuggingFaceCorpus(name, config.subset, split, config.text_key)

    validation = config.validation_split
    return Source(corpus(config.split), corpus(validation) if validation else None)
