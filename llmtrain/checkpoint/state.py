"""What is in a checkpoint: the tensors of model and optimizer, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtrain.optim.optimizer import named_state

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."


def training_tensors(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Everything that training changes: the parameters, and the optimizer's state under `optimizer.*`.

    The tensors are those of the run, not copies: loading writes into them.
    """
    state = named_state(optimizer, parameters)
    model = {f"{MODEL_PREFIX}{name}": value.detach() for name, value in parameters.items()}
    return model | {f"{OPTIMIZER_PREFIX}{name}": value for name, value in state.items()}
