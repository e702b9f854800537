"""First weights, the same in every layout: each parameter is drawn from a generator of its own name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmtrain.model.assembled import Assembled
from llmtrain.model.layers.lora import is_adapter
from llmtrain.utils.seed import derive_seed


@torch.no_grad()
def initialise(model: Assembled, seed: int) -> None:
    """Fill all parameters: biases 0, norms 1, matrices normal with the backbone's `init_std`; of adapters A
    as `torch.nn.Linear` has it, and B 0, so that they change nothing yet (Hu et al. 2021).

    Matrices are drawn whole on the CPU, one at a time, so that neither device nor layout matter. Rows of
    the embedding and of the head beyond the vocabulary are 0.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "lora_B")):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            if is_adapter(name):  # as in the authors' code: uniform, by the number of inputs
                bound = 1 / math.sqrt(values.shape[1])
                values.uniform_(-bound, bound, generator=generator)
            else:
                values.normal_(0.0, model.backbone.init_std(name), generator=generator)
            if is_vocabulary(name):
                values[model.backbone.vocab_size :] = 0.0
            fill(parameter, values)
            del values  # before the next one is made


@torch.no_grad()
def fill(parameter: Any, values: Tensor) -> None:
    """Copy a whole tensor into a parameter of which this process may hold a share only."""
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        placed = parameter.device_mesh, parameter.placements
        shape, start = compute_local_shape_and_global_offset(parameter.shape, *placed)
        own = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        parameter.to_local().copy_(values[own])
    else:
        parameter.copy_(values)


def is_vocabulary(name: str) -> bool:
    """Whether the rows of a matrix stand for tokens."""
    return name == "backbone.embedding.weight" or (
        name.startswith("head.") and name.endswith("projection.weight")
    )
