"""Adapters: small additions to a pretrained model that learn in its stead.

A YAML file of the group starts with `kind: ...`, which names the dataclass that checks the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtrain.schema.fields import require


@dataclass
class AdaptConfig:
    """What all kinds of adapters share."""

    kind: str = ""
    """Kind of adapters."""


@dataclass
class LoRAConfig(AdaptConfig):
    """Low-rank changes of weight matrices (Hu et al. 2021, "LoRA"): W + alpha / rank * B A, of which only A
    and B learn."""

    kind: str = "lora"
    """Kind of adapters."""

    rank: int = 16
    """Rows of A and columns of B."""

    alpha: float = 32.0
    """The change is multiplied by alpha / rank; twice the rank is usual, and lets rank change alone."""

    dropout: float = 0.0
    """Probability of leaving out an input of A, at least 0 and below 1."""

    targets: list[str] = field(default_factory=lambda: ["attention.*", "mlp.*"])
    """Linear layers that are adapted: patterns of the ends of their names, such as attention.query. Default:
    all of the blocks, as Dettmers et al. 2023 ("QLoRA", section 4) found it to take to equal full
    fine-tuning; Hu et al. adapted attention.query and attention.value."""

    def __post_init__(self) -> None:
        require(self.rank > 0, "rank", "must be greater than 0")
        require(self.alpha > 0, "alpha", "must be greater than 0")
        require(0 <= self.dropout < 1, "dropout", "must be at least 0 and below 1")
        require(bool(self.targets), "targets", "names no layer")

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank
