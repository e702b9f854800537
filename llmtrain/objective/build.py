"""The contract of an objective, and the choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.data.rows import Row
from llmtrain.objective.causal import Causal
from llmtrain.schema.groups import CausalConfig, DataConfig, ObjectiveConfig


class Objective(Protocol):
    """Makes labels and weighs sums; the products and the loss itself are the head's."""

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows of the plan -> batch with labels."""

    def count(self, batch: Batch) -> dict[str, int]:
        """Denominators of a batch; they are summed over all processes and microbatches."""

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums of a part and counts of the whole -> loss and additive statistics, `loss` among them."""


OBJECTIVES: dict[type, Callable[[Any, DataConfig], Objective]] = {
    CausalConfig: lambda config, data: Causal(data.isolate_documents),
}
"""Pretraining objectives."""


def build_objective(
    config: ObjectiveConfig,
    data: DataConfig,
    builders: Mapping[type, Callable[[Any, DataConfig], Objective]] = OBJECTIVES,
) -> Objective:
    """The objective for a config."""
    return builders[type(config)](config, data)
