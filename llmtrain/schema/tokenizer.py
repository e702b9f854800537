"""Tokenizers.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmtrain.schema.fields import require


@dataclass
class TokenizerConfig:
    """What all tokenizers share."""

    masks: ClassVar[bool | None] = None
    """Whether it has BERT's special tokens, the mask among them; None where that is not known yet."""

    kind: str = ""
    """Kind of tokenizer."""


@dataclass
class BytesTokenizer(TokenizerConfig):
    """One token per byte of UTF-8: 256 tokens and the end-of-text mark."""

    masks: ClassVar[bool | None] = False

    kind: str = "bytes"
    """Kind of tokenizer."""


@dataclass
class CharactersTokenizer(TokenizerConfig):
    """One token per distinct character of the training text."""

    masks: ClassVar[bool | None] = False

    kind: str = "characters"
    """Kind of tokenizer."""


@dataclass
class BPETokenizer(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training text (Sennrich et al. 2016; GPT-2)."""

    masks: ClassVar[bool | None] = False

    kind: str = "bpe"
    """Kind of tokenizer."""

    vocab_size: int = 4096
    """Tokens, with the 256 bytes and the end-of-text mark."""

    min_frequency: int = 2
    """A pair is merged only if it occurs so often."""

    train_bytes: int = 100_000_000
    """Bytes of text, from the start, that the merges are learned from."""

    def __post_init__(self) -> None:
        require(self.vocab_size > 257, "vocab_size", "must be above 257 (256 bytes and the end-of-text mark)")
        require(self.min_frequency > 0, "min_frequency", "must be greater than 0")
        require(self.train_bytes > 0, "train_bytes", "must be greater than 0")


@dataclass
class WordPieceTokenizer(TokenizerConfig):
    """BERT's WordPiece, trained on the training text; Chinese characters are tokens of their own."""

    masks: ClassVar[bool | None] = True

    kind: str = "wordpiece"
    """Kind of tokenizer."""

    vocab_size: int = 8192
    """Tokens, with [PAD], [UNK], [CLS], [SEP] and [MASK]."""

    lowercase: bool = True
    """Lower all letters and drop their accents, as BERT's uncased models do."""

    min_frequency: int = 2
    """A piece is made only if it occurs so often."""

    train_bytes: int = 100_000_000
    """Bytes of text, from the start, that the pieces are learned from."""

    def __post_init__(self) -> None:
        require(self.vocab_size > 5, "vocab_size", "must be above 5 (the special tokens)")
        require(self.min_frequency > 0, "min_frequency", "must be greater than 0")
        require(self.train_bytes > 0, "train_bytes", "must be greater than 0")


@dataclass
class FileTokenizer(TokenizerConfig):
    """A `tokenizer.json` of the Hugging Face tokenizers library, or BERT's `vocab.txt`."""

    kind: str = "file"
    """Kind of tokenizer."""

    path: str | None = None
    """The `tokenizer.json` or `vocab.txt`, or a folder with one."""

    lowercase: bool = True
    """For a `vocab.txt`: lower all letters and drop their accents. A `tokenizer.json` says it itself."""

    end_token: str | None = None
    """Token that ends a document. Default: the eos_token of a `tokenizer_config.json` beside the file, else
    the first known one of <|endoftext|>, </s>, <eos>, [SEP] ..."""
