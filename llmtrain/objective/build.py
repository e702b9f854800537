"""The contract of an objective, and the choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.data.loader import Rows
from llmtrain.data.store import View
from llmtrain.model.assembled import Backbone, Head
from llmtrain.model.kernels.linear_cross_entropy import LossTerms
from llmtrain.objective.causal import Causal
from llmtrain.objective.mlm import MLM
from llmtrain.objective.mlm_nsp import MLMNSP
from llmtrain.schema.data import DataConfig
from llmtrain.schema.objective import CausalConfig, MLMConfig, MLMNSPConfig, ObjectiveConfig


class Objective(Protocol):
    """What is learned: chooses the head and weighs its sums. The loss itself is the head's.

    Attributes:
        labelled_share: labels for each token of a batch, for the count of operations.
    """

    labelled_share: float

    def build_head(self, backbone: Backbone) -> Head:
        """The head that goes on a backbone, on the backbone's device (meta), tied where it is to be."""

    def count(self, batch: Batch) -> dict[str, float]:
        """Denominators of a batch; they are summed over all processes and microbatches."""

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums of a part and counts of the whole -> loss and additive statistics, `loss` among them."""


class PretrainingObjective(Objective, Protocol):
    """An objective that makes its own labels from text."""

    def rows(self, view: View, *, sequence_length: int, seed: int, shuffle: bool) -> Rows:
        """The rows of a text: which tokens stand where, and which are labels.

        Raises:
            ConfigError: the tokenizer lacks a token that is needed.
            DataError: the text does not do for it.
        """


OBJECTIVES: dict[type, Callable[[Any, DataConfig], PretrainingObjective]] = {
    CausalConfig: lambda config, data: Causal(
        data.isolate_documents, LossTerms(config.label_smoothing, config.z_loss)
    ),
    MLMConfig: lambda config, data: MLM(config),
    MLMNSPConfig: lambda config, data: MLMNSP(config),
}
"""Pretraining objectives."""


def build_objective(
    config: ObjectiveConfig,
    data: DataConfig,
    builders: Mapping[type, Callable[[Any, DataConfig], PretrainingObjective]] = OBJECTIVES,
) -> PretrainingObjective:
    """The objective for a config."""
    return builders[type(config)](config, data)
