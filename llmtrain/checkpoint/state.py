"""What is in a checkpoint: the tensors of model and optimizer, by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtrain.optim.average import Average
from llmtrain.optim.optimizer import named_state

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."
AVERAGE_PREFIX = "average."
AVERAGED_STEPS = "averaged.steps"


def training_tensors(
    parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, average: Average | None = None
) -> dict[str, Tensor]:
    """Everything that training changes: the parameters, the optimizer's state under `optimizer.*`, and the
    moving average of what learns under `average.*`, where there is one.

    The tensors are those of the run, not copies: loading writes into them.
    """
    state = named_state(optimizer, parameters)
    tensors = {f"{MODEL_PREFIX}{name}": value.detach() for name, value in parameters.items()}
    tensors |= {f"{OPTIMIZER_PREFIX}{name}": value for name, value in state.items()}
    if average is not None:
        tensors |= {f"{AVERAGE_PREFIX}{name}": value for name, value in average.averages.items()}
        tensors[AVERAGED_STEPS] = average.count
    return tensors
