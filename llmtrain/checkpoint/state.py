"""What is in a checkpoint: the tensors of model and optimizer, by name."""

from __future__ import annotations

import torch
from torch import Tensor

from llmtrain.model.assembled import Assembled
from llmtrain.optim.optimizer import named_state

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."


def model_tensors(model: Assembled) -> dict[str, Tensor]:
    """The parameters under `model.*`; tied ones once, under their first name."""
    return {f"{MODEL_PREFIX}{name}": value.detach() for name, value in model.named_parameters()}


def training_tensors(model: Assembled, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes: the parameters, and the optimizer's state under `optimizer.*`.

    The tensors are those of the run, not copies: loading writes into them.
    """
    state = named_state(optimizer, dict(model.named_parameters()))
    return model_tensors(model) | {f"{OPTIMIZER_PREFIX}{name}": value for name, value in state.items()}
