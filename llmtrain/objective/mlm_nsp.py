"""Masked language modelling and next-sentence prediction: BERT's two tasks."""

from __future__ import annotations

from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.packed import PackedRows
from llmtrain.data.pairs import PairRows
from llmtrain.data.store import View
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.vocabulary import MaskedNextHead
from llmtrain.objective.mlm import MLM
from llmtrain.schema.objective import MLMNSPConfig


class MLMNSP(MLM):
    """Masked tokens, and whether the second segment follows the first (Devlin et al. 2019, section 3.1).

    The two losses are added, each with a denominator of its own.

    Args:
        config: rates, what is masked together.
    """

    config: MLMNSPConfig

    def rows(self, view: View, *, sequence_length: int, seed: int, shuffle: bool) -> PackedRows:
        """Rows of pairs of segments; see `PairRows`.

        Raises:
            ConfigError: as for masked tokens alone.
            DataError: the text to train on has fewer than two documents, or none that gives a pair.
        """
        return PairRows(
            view,
            sequence_length=sequence_length,
            seed=seed,
            shuffle=shuffle,
            masker=self.masker(view, sequence_length, seed),
            random_next_rate=self.config.random_next_rate,
            short_rate=self.config.short_rate,
        )

    def build_head(self, backbone: Backbone) -> MaskedNextHead:
        """Projection of the masked positions, and two classes for each pair."""
        return MaskedNextHead(backbone, self.terms)

    def count(self, batch: Batch) -> dict[str, float]:
        """Numbers of masked tokens and of pairs: the denominators of the losses."""
        assert batch.sample_labels is not None
        return {**super().count(batch), "samples": int((batch.sample_labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the head's sums by global counts.

        Args:
            sums: `loss`, `correct`, `next_loss` and `next_correct`, from the head.
            counts: of the whole global batch.

        Returns:
            the sum of the two mean losses, as this part's share of it; and statistics that add up.
        """
        masked, stats = super().loss(sums, counts)
        following = sums["next_loss"] / counts["samples"]
        loss = masked + following
        return loss, {
            "loss": loss.detach(),
            "mlm_loss": stats["loss"],
            "mlm_accuracy": stats["mlm_accuracy"],
            "nsp_loss": following.detach(),
            "nsp_accuracy": sums["next_correct"] / counts["samples"],
        }
