"""Tokenizers.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from llmtrain.schema.fields import require


class Family(str, Enum):
    """Model families, for the special tokens that theirs have."""

    gpt = "gpt"
    chatml = "chatml"
    llama = "llama"
    bert = "bert"
    roberta = "roberta"


@dataclass
class TokenizerConfig:
    """What all tokenizers share."""

    kind: str = ""
    """Kind of tokenizer."""

    @property
    def masks(self) -> bool | None:
        """Whether it has BERT's special tokens, the mask among them; None where that is not known yet."""
        return None


@dataclass
class BytesTokenizer(TokenizerConfig):
    """One token per byte of UTF-8: 256 tokens and the end-of-text mark."""

    kind: str = "bytes"
    """Kind of tokenizer."""

    @property
    def masks(self) -> bool:
        return False


@dataclass
class CharactersTokenizer(TokenizerConfig):
    """One token per distinct character of the training text."""

    kind: str = "characters"
    """Kind of tokenizer."""

    @property
    def masks(self) -> bool:
        return False


@dataclass
class TrainedTokenizer(TokenizerConfig):
    """What tokenizers share that learn their vocabulary from the training text."""

    vocab_size: int = 8192
    """Tokens, with all special and added ones; fewer where the text has not so many."""

    train_bytes: int = 100_000_000
    """Bytes of text, from the start, that the vocabulary is learned from."""

    special_tokens: list[str] = field(default_factory=list)
    """Further special tokens; like all of them they are never made from text."""

    added_tokens: list[str] = field(default_factory=list)
    """Texts that are always a token of their own, wherever they stand."""

    def __post_init__(self) -> None:
        require(self.train_bytes > 0, "train_bytes", "must be greater than 0")
        for name in ("special_tokens", "added_tokens"):
            tokens = getattr(self, name)
            require(all(tokens) and len(set(tokens)) == len(tokens), name, "has an empty token or one twice")
        both = set(self.special_tokens) & set(self.added_tokens)
        require(not both, "added_tokens", f"has a special token: {', '.join(sorted(both))}")
        reserved = len(self.special_tokens) + len(self.added_tokens)
        least = self.least() + reserved
        require(self.vocab_size > least, "vocab_size", f"must be above {least} ({self.reserved()})")

    def least(self) -> int:
        """Tokens that do not come from the text."""
        return 5

    def reserved(self) -> str:
        """The same in words."""
        return "the special tokens"


@dataclass
class SubwordTokenizer(TrainedTokenizer):
    """What tokenizers share that know every byte, and take the special tokens of a model family."""

    family: Family = Family.gpt
    """Special tokens: gpt has <|endoftext|>; chatml also the marks of turns <|im_start|> and <|im_end|>;
    llama <unk> <s> </s>; bert [PAD] [UNK] [CLS] [SEP] [MASK]; roberta <s> <pad> </s> <unk> <mask>."""

    def reserved(self) -> str:
        return "256 bytes and the special tokens"

    @property
    def masks(self) -> bool:
        return self.family in (Family.bert, Family.roberta)


@dataclass
class BPETokenizer(SubwordTokenizer):
    """Byte-pair encoding (Sennrich et al. 2016): of bytes, as GPT-2 does, or of characters with bytes for the
    rare ones, as Llama 2 does."""

    kind: str = "bpe"
    """Kind of tokenizer."""

    vocab_size: int = 4096
    """Tokens, with the 256 bytes and all special and added ones."""

    min_frequency: int = 2
    """A pair is merged only if it occurs so often."""

    byte_fallback: bool = False
    """Merge characters instead of bytes; those that are too rare for a token become their bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.min_frequency > 0, "min_frequency", "must be greater than 0")

    def least(self) -> int:
        return 257


@dataclass
class UnigramTokenizer(SubwordTokenizer):
    """Unigram (Kudo 2018), as SentencePiece does: of all ways to cut a word the likeliest; what has no token
    becomes its bytes."""

    kind: str = "unigram"
    """Kind of tokenizer."""

    vocab_size: int = 8192
    """Tokens, with the 256 bytes and all special and added ones."""

    train_bytes: int = 20_000_000
    """Bytes of text, from the start, that the vocabulary is learned from; much memory is needed for it."""

    family: Family = Family.llama
    """Special tokens: llama has <unk> <s> </s>; gpt <|endoftext|>; chatml also <|im_start|> and <|im_end|>;
    bert [PAD] [UNK] [CLS] [SEP] [MASK]; roberta <s> <pad> </s> <unk> <mask>."""

    def least(self) -> int:
        return 262


@dataclass
class WordPieceTokenizer(TrainedTokenizer):
    """BERT's WordPiece, trained on the training text; Chinese characters are tokens of their own."""

    kind: str = "wordpiece"
    """Kind of tokenizer."""

    vocab_size: int = 8192
    """Tokens, with [PAD], [UNK], [CLS], [SEP], [MASK] and all further ones."""

    lowercase: bool = True
    """Lower all letters and drop their accents, as BERT's uncased models do."""

    min_frequency: int = 2
    """A piece is made only if it occurs so often."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.min_frequency > 0, "min_frequency", "must be greater than 0")

    @property
    def masks(self) -> bool:
        return True


@dataclass
class FileTokenizer(TokenizerConfig):
    """A `tokenizer.json` of the Hugging Face tokenizers library, GPT-2's `encoder.json` and `vocab.bpe` (or
    `vocab.json` and `merges.txt`), or BERT's `vocab.txt`."""

    kind: str = "file"
    """Kind of tokenizer."""

    path: str | None = None
    """One of these files, or a folder with them, such as that of a Hugging Face model."""

    lowercase: bool = True
    """For a `vocab.txt`: lower all letters and drop their accents. A `tokenizer.json` says it itself."""

    end_token: str | None = None
    """Token that ends a document. Default: the eos_token of a `tokenizer_config.json` beside the file, else
    the first known one of <|endoftext|>, </s>, <eos>, [SEP] ..."""
