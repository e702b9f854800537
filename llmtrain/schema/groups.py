"""The config groups whose choices differ in shape: one dataclass for each `kind`.

A YAML file of such a group starts with `kind: ...`, which names the dataclass that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from llmtrain.schema.fields import require

# --- model ------------------------------------------------------------------------------------------


class Position(str, Enum):
    """How a model knows where a token stands."""

    learned = "learned"
    rotary = "rotary"


class Norm(str, Enum):
    """Normalisation layer."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


class Activation(str, Enum):
    """Activation of the feed-forward layer."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    swiglu = "swiglu"


@dataclass
class ModelConfig:
    """What all model families share."""

    kind: str = ""
    """Model family."""

    vocab_size: int | None = None
    """Number of tokens. Default: that of the tokenizer."""

    vocab_multiple: int = 64
    """The embedding has this many rows or a multiple of it; padded rows stay 0 and outside the softmax.
    Matrix units like multiples of 64."""

    max_positions: int = 1024
    """Longest row the model can take, in tokens."""

    def __post_init__(self) -> None:
        require(self.vocab_size is None or self.vocab_size > 0, "vocab_size", "must be greater than 0")
        require(self.vocab_multiple > 0, "vocab_multiple", "must be greater than 0")
        require(self.max_positions > 0, "max_positions", "must be greater than 0")


@dataclass
class GPTConfig(ModelConfig):
    """Decoder-only transformer: GPT-2 by default, Llama-like with rotary, rmsnorm, swiglu, no bias."""

    kind: str = "gpt"
    """Model family."""

    num_layers: int = 12
    """Transformer blocks."""

    num_heads: int = 12
    """Attention heads."""

    num_kv_heads: int | None = None
    """Heads of keys and values (grouped-query attention). Default: num_heads."""

    dim: int = 768
    """Width of the residual stream."""

    hidden_dim: int | None = None
    """Width of the feed-forward layer. Default: 4 x dim (swiglu: 8/3 x dim, rounded up to 64)."""

    position: Position = Position.learned
    """learned: one vector per position (GPT-2); rotary: rotation of queries and keys (RoPE)."""

    rotary_theta: float = 10000.0
    """Base of the rotary frequencies."""

    norm: Norm = Norm.layernorm
    """Normalisation before each sub-layer."""

    norm_eps: float = 1e-5
    """Added to the variance in the norm."""

    activation: Activation = Activation.gelu_tanh
    """Activation of the feed-forward layer; gelu_tanh is GPT-2's."""

    bias: bool = True
    """Biases in linear layers and layer norms."""

    tie_embeddings: bool = True
    """Use the token embedding as output projection too."""

    dropout: float = 0.0
    """Dropout on embeddings, attention weights and residual branches."""

    init_std: float = 0.02
    """Standard deviation of initial weights; output projections of branches get it divided by
    sqrt(2 x num_layers) (GPT-2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_layers", "num_heads", "dim"):
            require(getattr(self, key) > 0, key, "must be greater than 0")
        for key in ("num_kv_heads", "hidden_dim"):
            value = getattr(self, key)
            require(value is None or value > 0, key, "must be greater than 0")
        require(
            self.dim % self.num_heads == 0,
            "dim",
            f"must be a multiple of num_heads: {self.dim} is not a multiple of {self.num_heads}",
        )
        kv_heads = self.num_kv_heads or self.num_heads
        require(
            self.num_heads % kv_heads == 0,
            "num_kv_heads",
            f"must divide num_heads: {kv_heads} does not divide {self.num_heads}",
        )
        require(
            self.position != Position.rotary or (self.dim // self.num_heads) % 2 == 0,
            "position",
            "rotary needs an even head width (dim / num_heads)",
        )
        require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")


# --- objective --------------------------------------------------------------------------------------


@dataclass
class ObjectiveConfig:
    """What all pretraining objectives share."""

    kind: str = ""
    """Pretraining objective."""


@dataclass
class CausalConfig(ObjectiveConfig):
    """Predict the next token from those before it (autoregressive language modelling)."""

    kind: str = "causal"
    """Pretraining objective."""


# --- data -------------------------------------------------------------------------------------------


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


# --- tokenizer --------------------------------------------------------------------------------------


@dataclass
class TokenizerConfig:
    """What all tokenizers share."""

    kind: str = ""
    """Kind of tokenizer."""


@dataclass
class BytesTokenizer(TokenizerConfig):
    """One token per byte of UTF-8: 256 tokens and the end-of-text mark."""

    kind: str = "bytes"
    """Kind of tokenizer."""


@dataclass
class CharactersTokenizer(TokenizerConfig):
    """One token per distinct character of the training text."""

    kind: str = "characters"
    """Kind of tokenizer."""


@dataclass
class BPETokenizer(TokenizerConfig):
    """Byte-level byte-pair encoding, trained on the training text (Sennrich et al. 2016; GPT-2)."""

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
class FileTokenizer(TokenizerConfig):
    """A `tokenizer.json` of the Hugging Face tokenizers library."""

    kind: str = "file"
    """Kind of tokenizer."""

    path: str | None = None
    """The `tokenizer.json`, or a folder with one."""

    end_token: str | None = None
    """Token that ends a document. Default: the first known one of <|endoftext|>, </s>, <eos>, [SEP] ..."""


# --- optimizer and schedule -------------------------------------------------------------------------


@dataclass
class OptimConfig:
    """What all optimizers share."""

    kind: str = ""
    """Optimizer."""

    lr: float = 1e-3
    """Highest learning rate; the schedule scales it."""

    weight_decay: float = 0.1
    """Decay of matrices; norms and biases are never decayed."""

    decay_embeddings: bool = False
    """Decay embeddings too."""

    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 does not clip."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "must be greater than 0")
        require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        require(self.clip_norm >= 0, "clip_norm", "must not be negative")


@dataclass
class AdamWConfig(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: str = "adamw"
    """Optimizer."""

    beta1: float = 0.9
    """Decay of the mean of gradients."""

    beta2: float = 0.95
    """Decay of the mean of squared gradients."""

    eps: float = 1e-8
    """Added to the denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, "must be at least 0 and below 1")
        require(self.eps > 0, "eps", "must be greater than 0")


@dataclass
class ScheduleConfig:
    """What all learning-rate schedules share."""

    kind: str = ""
    """Shape of the learning rate over time."""

    warmup: float = 0.02
    """Linear warm-up: below 1 a share of the run, from 1 on a number of steps."""

    def __post_init__(self) -> None:
        require(self.warmup >= 0, "warmup", "must not be negative")
        require(self.warmup < 1 or self.warmup == int(self.warmup), "warmup", "from 1 on must be whole steps")


@dataclass
class ConstantSchedule(ScheduleConfig):
    """Warm-up, then constant."""

    kind: str = "constant"
    """Shape of the learning rate over time."""


@dataclass
class LinearSchedule(ScheduleConfig):
    """Warm-up, then linear decay to the final ratio."""

    kind: str = "linear"
    """Shape of the learning rate over time."""

    final_ratio: float = 0.0
    """Learning rate at the end, as a share of the highest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final_ratio <= 1, "final_ratio", "must be between 0 and 1")


@dataclass
class CosineSchedule(ScheduleConfig):
    """Warm-up, then half a cosine down to the final ratio (Loshchilov & Hutter 2017)."""

    kind: str = "cosine"
    """Shape of the learning rate over time."""

    final_ratio: float = 0.1
    """Learning rate at the end, as a share of the highest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final_ratio <= 1, "final_ratio", "must be between 0 and 1")
