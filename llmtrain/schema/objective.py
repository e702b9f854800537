"""Pretraining objectives.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from llmtrain.schema.fields import require


class Masking(str, Enum):
    """What is masked together."""

    tokens = "tokens"
    words = "words"
    spans = "spans"


@dataclass
class ObjectiveConfig:
    """What all pretraining objectives share."""

    causal: ClassVar[bool]
    """Whether it takes a model that sees only what stands before a position."""

    kind: str = ""
    """Pretraining objective."""

    label_smoothing: float = 0.0
    """Share of a target that is spread over the whole vocabulary (Szegedy et al. 2016). In training only:
    validation losses stay comparable."""

    z_loss: float = 0.0
    """Factor of the squared logarithm of the softmax's denominator, added to the loss in training: keeps
    logits from drifting in long runs (Chowdhery et al. 2022, who take 1e-4)."""

    def __post_init__(self) -> None:
        require(0 <= self.label_smoothing < 1, "label_smoothing", "must be at least 0 and below 1")
        require(self.z_loss >= 0, "z_loss", "must not be negative")


@dataclass
class CausalConfig(ObjectiveConfig):
    """Predict the next token from those before it (autoregressive language modelling)."""

    causal: ClassVar[bool] = True

    kind: str = "causal"
    """Pretraining objective."""


@dataclass
class MLMConfig(ObjectiveConfig):
    """Predict masked tokens from both sides (masked language modelling, Devlin et al. 2019)."""

    causal: ClassVar[bool] = False

    kind: str = "mlm"
    """Pretraining objective."""

    mask_rate: float = 0.15
    """Share of the tokens of a sample that are predicted; special tokens never are."""

    replace_rate: float = 0.8
    """Share of these that the mask token stands for in the input."""

    random_rate: float = 0.1
    """Share of these that a random token stands for; the rest stay as they are."""

    masking: Masking = Masking.tokens
    """tokens: each by itself; words: all pieces of a word (whole-word masking); spans: runs of whole
    words with geometric lengths (SpanBERT, Joshi et al. 2020)."""

    span_rate: float = 0.2
    """Parameter of the geometric distribution of span lengths in words; the mean is about 3.8."""

    span_limit: int = 10
    """Longest span in words."""

    word_list: str | None = None
    """File with one word a line: what counts as a word for `words` and `spans` in text without blanks,
    such as Chinese; the longest match wins. Default: pieces that continue a word belong to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.mask_rate < 1, "mask_rate", "must be above 0 and below 1")
        require(self.replace_rate >= 0, "replace_rate", "must not be negative")
        require(self.random_rate >= 0, "random_rate", "must not be negative")
        require(
            self.replace_rate + self.random_rate <= 1 + 1e-9, "random_rate", "must leave the sum at most 1"
        )
        require(0 < self.span_rate < 1, "span_rate", "must be above 0 and below 1")
        require(self.span_limit > 0, "span_limit", "must be greater than 0")
        require(
            self.word_list is None or self.masking is not Masking.tokens,
            "word_list",
            "is only used by masking=words and masking=spans",
        )


@dataclass
class MLMNSPConfig(MLMConfig):
    """Masked tokens, and whether the second segment follows the first (BERT's two tasks)."""

    kind: str = "mlm_nsp"
    """Pretraining objective."""

    random_next_rate: float = 0.5
    """Share of samples whose second segment comes from another document."""

    short_rate: float = 0.1
    """Share of samples that are cut to a random shorter length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.random_next_rate < 1, "random_next_rate", "must be above 0 and below 1")
        require(0 <= self.short_rate <= 1, "short_rate", "must be between 0 and 1")
