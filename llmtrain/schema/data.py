"""Data sources for pretraining.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from llmtrain.schema.clean import CleanConfig
from llmtrain.schema.fields import require


class OnError(str, Enum):
    """What to do with a row that cannot be read."""

    fail = "fail"
    skip = "skip"


class Documents(str, Enum):
    """What one document is in a plain text file."""

    file = "file"
    line = "line"
    paragraph = "paragraph"


@dataclass
class DataConfig:
    """What all data sources share."""

    kind: str = ""
    """Data source."""

    validation_fraction: float = 0.01
    """Share of the tokens that is held out for validation: whole documents drawn by seed, or, where no
    document is small enough, the end of the text. Ignored when there is a validation source."""

    max_tokens: int | None = None
    """Read no more than so many tokens. Default: everything."""

    isolate_documents: bool = False
    """Keep attention and prediction inside each document when several are packed into a row."""

    on_error: OnError = OnError.fail
    """fail stops at the first unreadable row with its file and line; skip leaves it out, counts it, and
    writes it to a file beside the store."""

    max_errors: int | None = None
    """With on_error=skip: stop all the same when more rows than that cannot be read. Default: no limit."""

    clean: CleanConfig | None = None
    """What is done to documents before they are tokenised. Default: nothing."""

    weight: float | None = None
    """For a source of data=mixture: its share of the rows, in relation to the weights of the others.
    Default: by its tokens, so that all sources are read equally often."""

    def __post_init__(self) -> None:
        require(self.max_errors is None or self.max_errors >= 0, "max_errors", "must not be negative")
        require(self.weight is None or self.weight > 0, "weight", "must be greater than 0")
        require(0 <= self.validation_fraction < 1, "validation_fraction", "must be at least 0 and below 1")
        require(self.max_tokens is None or self.max_tokens > 0, "max_tokens", "must be greater than 0")


@dataclass
class TextData(DataConfig):
    """Local files: .txt, .jsonl, .csv, .tsv, .html, each also with .gz or .zst, and .parquet."""

    kind: str = "text"
    """Data source."""

    paths: list[str] = field(default_factory=list)
    """Files, folders or patterns such as `books/*.jsonl.gz`; a folder means all text files in it."""

    validation_paths: list[str] = field(default_factory=list)
    """Files for validation. Default: part of the training text, see validation_fraction."""

    text_key: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""

    documents: Documents = Documents.file
    """What is one document in a .txt file: the whole file, each line, or each paragraph (parted by
    blank lines). A JSON line, a row of a table and an .html file are always one document."""


@dataclass
class HuggingFaceData(DataConfig):
    """A data set of the Hugging Face hub, or a local folder in its layout."""

    kind: str = "huggingface"
    """Data source."""

    name: str | None = None
    """Name on the hub, such as `Salesforce/wikitext`, or a local folder."""

    subset: str | None = None
    """Configuration of the data set, such as `wikitext-2-raw-v1`."""

    split: str = "train"
    """Split for training."""

    validation_split: str | None = None
    """Split for validation. Default: part of the training split, see validation_fraction."""

    text_key: str = "text"
    """Column that holds the text."""


@dataclass
class PythonCodeData(DataConfig):
    """Source code of Python's standard library: about 11 MB on every machine, offline."""

    kind: str = "python_code"
    """Data source."""


@dataclass
class PythonProseData(DataConfig):
    """English prose inside Python: docstrings and the topics of `help()`, about 2 MB, offline."""

    kind: str = "python_prose"
    """Data source."""


NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Of the sources and validation texts of a mixture."""

INHERITED = ("validation_fraction", "on_error", "max_errors", "clean")
"""Settings of a mixture that hold for each of its texts that does not say otherwise."""


@dataclass
class MixtureData(DataConfig):
    """Several sources in one run, each with its share of the rows.

    What is set for the mixture itself (on_error, max_errors, clean, validation_fraction) holds for each
    source that does not set it for itself; max_tokens is set for each source.
    """

    kind: str = "mixture"
    """Data source."""

    sources: dict[str, DataConfig] = field(default_factory=dict)
    """What is trained on, by name: data.sources.books.paths=[...] data.sources.books.weight=70; other kinds
    than text say so: data.sources.web.kind=huggingface."""

    validation: dict[str, DataConfig] = field(default_factory=dict)
    """Texts to validate on, by name: data.validation.books.paths=[...]. Default: what each source holds
    out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("sources", "validation"):
            wrong = [name for name in getattr(self, key) if not NAME.fullmatch(name)]
            require(not wrong, key, f"has a name that is not of letters, digits, _ and -: {wrong[:1]}")
        require(self.max_tokens is None, "max_tokens", "is set for each source of a mixture")
        require(self.weight is None, "weight", "is for the sources of a mixture")
