"""Data sources for pretraining.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

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
    """fail stops at the first unreadable row with its file and line; skip leaves it out and counts it."""

    def __post_init__(self) -> None:
        require(0 <= self.validation_fraction < 1, "validation_fraction", "must be at least 0 and below 1")
        require(self.max_tokens is None or self.max_tokens > 0, "max_tokens", "must be greater than 0")


@dataclass
class TextData(DataConfig):
    """Local files: .txt, .jsonl, and either with .gz."""

    kind: str = "text"
    """Data source."""

    paths: list[str] = field(default_factory=list)
    """Files, folders or patterns such as `books/*.jsonl.gz`; a folder means all text files in it."""

    validation_paths: list[str] = field(default_factory=list)
    """Files for validation. Default: part of the training text, see validation_fraction."""

    text_key: str = "text"
    """Field of a JSON line that holds the text."""

    documents: Documents = Documents.file
    """What is one document in a .txt file: the whole file, each line, or each paragraph (parted by
    blank lines). A JSON line is always one document."""


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
