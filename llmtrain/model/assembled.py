"""A backbone with a head: what is trained, saved and loaded."""

from __future__ import annotations

from torch import Tensor, nn

from llmtrain.data.batch import Batch


class Assembled(nn.Module):
    """Keys are `backbone.*` and `head.*` in every family; fine-tuning loads `backbone.*` alone."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The head's sums for a batch."""
        hidden_BTD = self.backbone(batch.ids, batch.positions, batch.documents)
        return self.head(hidden_BTD, batch.labels, batch.selected)

    def named_unique_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter once, under its first name; a tied head counts as the embedding."""
        return dict(self.named_parameters(remove_duplicate=True))

    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of a training step for one token that carries a label."""
        return self.backbone.flops_per_token(sequence_length) + self.head.flops_per_token()  # type: ignore[operator]
