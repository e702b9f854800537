"""First weights, the same in every layout: each parameter is drawn from a generator of its own name."""

from __future__ import annotations

import torch

from llmtrain.model.assembled import Assembled
from llmtrain.utils.seed import derive_seed


@torch.no_grad()
def initialise(model: Assembled, seed: int) -> None:
    """Fill all parameters: biases 0, norms 1, matrices normal with the backbone's `init_std`.

    Matrices are drawn on the CPU, so that the device does not matter either. Rows of the embedding and
    of the head beyond the vocabulary are 0.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
            values = torch.empty(parameter.shape, dtype=torch.float32)
            values.normal_(0.0, model.backbone.init_std(name), generator=generator)
            parameter.copy_(values)
    for name, parameter in model.named_parameters():
        if is_vocabulary(name):
            parameter[model.backbone.vocab_size :] = 0.0


def is_vocabulary(name: str) -> bool:
    """Whether the rows of a matrix stand for tokens."""
    return name == "backbone.embedding.weight" or (
        name.startswith("head.") and name.endswith("projection.weight")
    )
