"""Masked language modelling."""

from __future__ import annotations

from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.mask import Masker
from llmtrain.data.packed import PackedRows
from llmtrain.data.spans import SpanRows
from llmtrain.data.store import View
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.vocabulary import MaskedHead
from llmtrain.model.kernels.linear_cross_entropy import LossTerms
from llmtrain.schema.objective import MLMConfig
from llmtrain.utils.errors import ConfigError


class MLM:
    """Cross-entropy of masked tokens, predicted from both sides (Devlin et al. 2019, section 3.1).

    Args:
        config: rates, what is masked together.
    """

    def __init__(self, config: MLMConfig) -> None:
        self.config = config
        self.labelled_share = config.mask_rate
        self.terms = LossTerms(config.label_smoothing, config.z_loss)

    def rows(self, view: View, *, sequence_length: int, seed: int, shuffle: bool) -> PackedRows:
        """Rows of spans of documents, every token once in an epoch.

        Raises:
            ConfigError: the tokenizer has no mask token or none to frame a text with, rows are too short,
                or the word list cannot be read.
            DataError: there is no text.
        """
        return SpanRows(
            view,
            sequence_length=sequence_length,
            seed=seed,
            shuffle=shuffle,
            masker=self.masker(view, sequence_length, seed),
        )

    def masker(self, view: View, sequence_length: int, seed: int) -> Masker:
        """What masks the rows; see `rows`."""
        tokenizer = view.store.tokenizer
        ids = {"[MASK]": tokenizer.mask_id, "[CLS]": tokenizer.cls_id, "[SEP]": tokenizer.sep_id}
        if missing := [name for name, i in ids.items() if i is None]:
            raise ConfigError(
                f"objective={self.config.kind} needs a tokenizer with {', '.join(missing)}, or their like",
                "tokenizer",
                "give tokenizer=wordpiece, or tokenizer=file with the tokenizer of an encoder",
            )
        return Masker(self.config, tokenizer, sequence_length=sequence_length, seed=seed)

    def build_head(self, backbone: Backbone) -> MaskedHead:
        """Projection of the masked positions onto the vocabulary."""
        return MaskedHead(backbone, self.terms)

    def count(self, batch: Batch) -> dict[str, float]:
        """Number of labels: the denominator of the loss."""
        assert batch.labels is not None
        return {"labels": int((batch.labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the head's sums by global counts.

        Args:
            sums: `loss` and `correct`, from the head.
            counts: of the whole global batch.

        Returns:
            the mean loss of a masked token, as this part's share of it; and statistics that add up.
        """
        loss = sums["loss"] / counts["labels"]
        return loss, {"loss": loss.detach(), "mlm_accuracy": sums["correct"] / counts["labels"]}
