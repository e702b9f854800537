"""Optimizers and learning-rate schedules.

One dataclass for each `kind`: a YAML file of the group starts with `kind: ...`, which names the dataclass
that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from llmtrain.schema.fields import Precision, require


class Products(str, Enum):
    """Type in which an optimizer multiplies matrices."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


@dataclass
class OptimConfig:
    """What all optimizers share."""

    tells_hidden: ClassVar[bool] = False
    """Whether the matrices of the blocks are groups of their own."""

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

    layer_decay: float = 1.0
    """Layer-wise decay: each block learns at this share of the rate of the block above it, the embeddings
    below all blocks; the head at the full rate. 1 is the same rate everywhere."""

    freeze: list[str] = field(default_factory=list)
    """Parameters that do not learn, by name or pattern: `backbone.embedding*`, `backbone.blocks.[0-3].*`."""

    ema: float = 0.0
    """Decay of a moving average of the weights, such as 0.999; 0 keeps none. The average is evaluated,
    sampled, exported and started from in place of the weights; it takes 4 bytes a number that learns."""

    def __post_init__(self) -> None:
        require(0 < self.layer_decay <= 1, "layer_decay", "must be above 0 and at most 1")
        require(self.lr > 0, "lr", "must be greater than 0")
        require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        require(self.clip_norm >= 0, "clip_norm", "must not be negative")
        require(0 <= self.ema < 1, "ema", "must be at least 0 and below 1")

    def rate(self, hidden: bool) -> float:
        """Highest learning rate of a group; of matrices of the blocks, where they are told apart."""
        return self.lr

    def settle(self, precision: Precision) -> None:
        """Decide what was left open, for a training step of this precision."""


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
class AdamConfig(AdamWConfig):
    """Adam (Kingma & Ba 2015): weight decay is added to the gradient, and so divided like it."""

    kind: str = "adam"
    """Optimizer."""

    weight_decay: float = 0.0
    """Added to the gradient of matrices, times the weight; norms and biases are never decayed."""

    beta2: float = 0.999
    """Decay of the mean of squared gradients."""


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum."""

    kind: str = "sgd"
    """Optimizer."""

    lr: float = 0.1
    """Highest learning rate; the schedule scales it. Steps are as long as gradients: greater than Adam's."""

    weight_decay: float = 0.0
    """Added to the gradient of matrices, times the weight; norms and biases are never decayed."""

    momentum: float = 0.9
    """Share of the last step in the next one."""

    nesterov: bool = False
    """Take the gradient where momentum leads to (Sutskever et al. 2013)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", "must be at least 0 and below 1")
        require(not self.nesterov or self.momentum > 0, "nesterov", "needs momentum")


@dataclass
class AdafactorConfig(OptimConfig):
    """Adafactor (Shazeer & Stern 2018): of the squared gradients of a matrix it keeps sums of rows and
    columns only, so that its state takes next to no memory."""

    kind: str = "adafactor"
    """Optimizer."""

    lr: float = 1e-2
    """Highest learning rate, as a share of the size of the weights; the schedule scales it."""

    weight_decay: float = 0.0
    """Decay of matrices; norms and biases are never decayed."""

    beta2_decay: float = -0.8
    """The mean of squared gradients decays by 1 - step ** beta2_decay."""

    clip_update: float = 1.0
    """Updates are scaled down to this root mean square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta2_decay <= 0, "beta2_decay", "must not be above 0")
        require(self.clip_update > 0, "clip_update", "must be greater than 0")


@dataclass
class LionConfig(OptimConfig):
    """Lion (Chen et al. 2023): steps of one size, in the direction of the sign of a mean gradient."""

    kind: str = "lion"
    """Optimizer."""

    lr: float = 1e-4
    """Highest learning rate; the schedule scales it. A third to a tenth of Adam's."""

    weight_decay: float = 1.0
    """Decay of matrices; norms and biases are never decayed. Three to ten times Adam's, since lr is less."""

    beta1: float = 0.9
    """Share of the mean gradient in the direction of a step."""

    beta2: float = 0.99
    """Decay of the mean gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, "must be at least 0 and below 1")


@dataclass
class MuonConfig(OptimConfig):
    """Muon (Jordan et al. 2024) for the matrices of the blocks: momentum that is made orthogonal. AdamW for
    all else: embeddings, heads, norms and biases."""

    tells_hidden: ClassVar[bool] = True

    kind: str = "muon"
    """Optimizer."""

    lr: float = 2e-3
    """Highest learning rate of the matrices of the blocks; the schedule scales it. Updates are as large as
    AdamW's (Liu et al. 2025), so that its rates are a good start."""

    adam_lr: float | None = None
    """Highest learning rate of all else. Default: lr."""

    momentum: float = 0.95
    """Share of the mean gradient of matrices that is kept; the gradient is taken where it leads to
    (Nesterov)."""

    products: Products = Products.auto
    """Type in which matrices are made orthogonal. auto: that of the training step; bf16 is enough, and
    fast where the hardware has it."""

    beta1: float = 0.9
    """AdamW's decay of the mean of gradients."""

    beta2: float = 0.95
    """AdamW's decay of the mean of squared gradients."""

    eps: float = 1e-8
    """Added to AdamW's denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.adam_lr is None or self.adam_lr > 0, "adam_lr", "must be greater than 0")
        for key in ("momentum", "beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, "must be at least 0 and below 1")
        require(self.eps > 0, "eps", "must be greater than 0")

    def rate(self, hidden: bool) -> float:
        """See `OptimConfig`."""
        return self.lr if hidden or self.adam_lr is None else self.adam_lr

    def settle(self, precision: Precision) -> None:
        """See `OptimConfig`; fp16 has too short a range for it."""
        if self.products is Products.auto:
            low = precision is not Precision.fp32
            self.products = Products.bf16 if low else Products.fp32


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


@dataclass
class PolynomialSchedule(ScheduleConfig):
    """Warm-up, then down to the final ratio by a power of what is left of the run."""

    kind: str = "polynomial"
    """Shape of the learning rate over time."""

    power: float = 2.0
    """1 is linear; the greater, the sooner the rate falls."""

    final_ratio: float = 0.0
    """Learning rate at the end, as a share of the highest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, "power", "must be greater than 0")
        require(0 <= self.final_ratio <= 1, "final_ratio", "must be between 0 and 1")


@dataclass
class WSDSchedule(ScheduleConfig):
    """Warm-up, stable, decay (Hu et al. 2024, "MiniCPM"): constant, and at last down to the final ratio. A
    run can be taken up from before its decay, and trained for longer."""

    kind: str = "wsd"
    """Shape of the learning rate over time."""

    decay: float = 0.2
    """Share of the run, after the warm-up, in which the rate falls."""

    final_ratio: float = 0.0
    """Learning rate at the end, as a share of the highest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay <= 1, "decay", "must be above 0 and at most 1")
        require(0 <= self.final_ratio <= 1, "final_ratio", "must be between 0 and 1")
