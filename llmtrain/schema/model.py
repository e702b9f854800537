"""Model families: what makes one, and its sizes.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from llmtrain.schema.fields import require


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
    geglu = "geglu"
    relu_squared = "relu_squared"

    @property
    def gated(self) -> bool:
        """Whether one projection of the feed-forward layer opens and shuts another."""
        return self in (Activation.swiglu, Activation.geglu)


class Scaling(str, Enum):
    """How rotary frequencies are changed for rows longer than those of the first pretraining."""

    none = "none"
    linear = "linear"
    llama3 = "llama3"
    yarn = "yarn"


@dataclass
class RotaryScaling:
    """Rotary frequencies of models that were made for longer rows after their first pretraining."""

    method: Scaling = Scaling.none
    """linear: all frequencies are divided (Chen et al. 2023); llama3: only the low ones (Llama 3.1); yarn:
    the low ones, and attention gets sharper (Peng et al. 2023)."""

    factor: float = 1.0
    """Frequencies are divided by it: how many times longer rows have become."""

    original_positions: int = 8192
    """llama3, yarn: longest row of the first pretraining, in tokens."""

    low_frequency: float = 1.0
    """llama3: a frequency with fewer turns than this in the original rows is divided."""

    high_frequency: float = 4.0
    """llama3: a frequency with more turns than this in the original rows is kept."""

    beta_fast: float = 32.0
    """yarn: a frequency with more turns than this in the original rows is kept."""

    beta_slow: float = 1.0
    """yarn: a frequency with fewer turns than this in the original rows is divided."""

    attention_factor: float | None = None
    """yarn: factor on queries and on keys. Default: 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor", "must be at least 1")
        require(self.original_positions > 0, "original_positions", "must be greater than 0")
        require(0 < self.low_frequency < self.high_frequency, "low_frequency", "must be below high_frequency")
        require(0 < self.beta_slow < self.beta_fast, "beta_slow", "must be below beta_fast")
        require(
            self.attention_factor is None or self.attention_factor > 0,
            "attention_factor",
            "must be greater than 0",
        )


@dataclass
class ModelConfig:
    """What all model families share."""

    causal: ClassVar[bool]
    """Whether a position sees only what stands before it (decoders) or all of its document (encoders)."""

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
class TransformerConfig(ModelConfig):
    """What transformers share: shapes, layers, dropout, initial weights."""

    num_layers: int = 12
    """Transformer blocks."""

    num_heads: int = 12
    """Attention heads."""

    dim: int = 768
    """Width of the residual stream."""

    head_dim: int | None = None
    """Width of an attention head. Default: dim / num_heads."""

    hidden_dim: int | None = None
    """Width of the feed-forward layer. Default: 4 x dim (gated: 8/3 x dim, rounded up to 64)."""

    position: Position = Position.learned
    """learned: one vector per position (BERT, GPT-2); rotary: rotation of queries and keys (RoPE)."""

    rotary_theta: float = 10000.0
    """Base of the rotary frequencies."""

    rotary_scaling: RotaryScaling = field(default_factory=RotaryScaling)
    """Frequencies for longer rows than those of the first pretraining."""

    norm: Norm = Norm.layernorm
    """Normalisation layer."""

    norm_eps: float = 1e-5
    """Added to the variance in the norm."""

    activation: Activation = Activation.gelu
    """Activation of the feed-forward layer."""

    bias: bool = True
    """Biases in linear layers and layer norms."""

    qkv_bias: bool | None = None
    """Biases of queries, keys and values (Qwen2 has no others). Default: as bias."""

    out_bias: bool | None = None
    """Bias of the projection that ends attention. Default: as bias."""

    query_key_norm: bool = False
    """Normalise the query and the key of each head before they are rotated (RMSNorm, as in Qwen3)."""

    dropout: float = 0.0
    """Dropout on embeddings, attention weights and residual branches."""

    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_layers", "num_heads", "dim"):
            require(getattr(self, key) > 0, key, "must be greater than 0")
        for key in ("hidden_dim", "head_dim"):
            require(getattr(self, key) is None or getattr(self, key) > 0, key, "must be greater than 0")
        require(
            self.head_dim is not None or self.dim % self.num_heads == 0,
            "dim",
            f"must be a multiple of num_heads: {self.dim} is not a multiple of {self.num_heads}",
        )
        require(
            self.position != Position.rotary or self.head_width % 2 == 0,
            "position",
            "rotary needs an even head width (head_dim, or dim / num_heads)",
        )
        require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def feed_forward_dim(self) -> int:
        """Width of the feed-forward layer. Two thirds of 4 x dim keep the number of parameters where a gate
        takes a third (Shazeer 2020)."""
        usual = -(-(8 * self.dim // 3) // 64) * 64 if self.activation.gated else 4 * self.dim
        return self.hidden_dim or usual


@dataclass
class GPTConfig(TransformerConfig):
    """Decoder-only transformer: GPT-2 by default, Llama-like with rotary, rmsnorm, swiglu, no bias."""

    causal: ClassVar[bool] = True

    kind: str = "gpt"
    """Model family."""

    num_kv_heads: int | None = None
    """Heads of keys and values (grouped-query attention). Default: num_heads."""

    window: int | None = None
    """Tokens that attention looks at, back from each one and with it (sliding window, as in Mistral).
    Default: all that stand before it."""

    activation: Activation = Activation.gelu_tanh
    """Activation of the feed-forward layer; gelu_tanh is GPT-2's."""

    tie_embeddings: bool = True
    """Use the token embedding as output projection too."""

    init_std: float = 0.02
    """Standard deviation of initial weights; output projections of branches get it divided by
    sqrt(2 x num_layers) (GPT-2)."""

    zero_init: bool = False
    """Output projections of branches start at 0 instead: every block first passes on what it gets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window is None or self.window > 0, "window", "must be greater than 0")
        require(self.num_kv_heads is None or self.num_kv_heads > 0, "num_kv_heads", "must be greater than 0")
        kv_heads = self.num_kv_heads or self.num_heads
        require(
            self.num_heads % kv_heads == 0,
            "num_kv_heads",
            f"must divide num_heads: {kv_heads} does not divide {self.num_heads}",
        )


@dataclass
class BERTConfig(TransformerConfig):
    """Encoder-only transformer: BERT by default; pre-norm, rotary, geglu, no bias and local attention
    make it ModernBERT-like."""

    causal: ClassVar[bool] = False

    kind: str = "bert"
    """Model family."""

    max_positions: int = 512
    """Longest row the model can take, in tokens."""

    num_segments: int = 2
    """Kinds of segments that have an embedding of their own (token types); 0 has none."""

    norm_eps: float = 1e-12
    """Added to the variance in the norm."""

    norm_first: bool = False
    """Normalise before each sub-layer (pre-norm) instead of after adding it to the stream (post-norm)."""

    dropout: float = 0.1
    """Dropout on embeddings, attention weights and residual branches."""

    local_window: int | None = None
    """Tokens, half to each side, that a local layer looks at. Default: every layer is global."""

    global_every: int = 3
    """With local_window: the first layer and then every so many-th looks at the whole document."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_segments >= 0, "num_segments", "must not be negative")
        require(self.global_every > 0, "global_every", "must be greater than 0")
        require(self.local_window is None or self.local_window > 0, "local_window", "must be greater than 0")
