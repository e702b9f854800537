"""Data parallel: every process holds the whole model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.utils import dist


class Replicated:
    """A model that is trained by one process alone, or by several on different rows.

    Attributes:
        module: what the training step calls.
        loss_scale: what the loss is multiplied by before the backward pass. Our losses are divided by
            global counts, so gradients have to be summed; DDP averages them.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.module = model
        self.loss_scale = 1.0
        self._no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
        if dist.world_size() > 1:
            wrapped = DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )
            self.module = wrapped
            self.loss_scale = float(dist.world_size())
            self._no_sync = wrapped.no_sync

    def sync_gradients(self, enabled: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the backward pass only if `enabled`: in the last microbatch."""
        return nullcontext() if enabled else self._no_sync()
