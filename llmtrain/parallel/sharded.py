"""Layouts without a pipeline in which no process has the whole model or whole rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled, Output
from llmtrain.model.build import materialise
from llmtrain.parallel.context import own_tokens, share_tokens
from llmtrain.parallel.fully_sharded import give_up, shard
from llmtrain.parallel.layout import Microbatched, Sums
from llmtrain.parallel.mesh import Mesh
from llmtrain.parallel.tensor import share_tensors


class Sharded(Microbatched):
    """Tensor and context parallel, over weights that are sharded in any case: one way for all of them.

    Args:
        model: on the meta device; nobody ever holds all of it.
        mesh: the processes.
        precision: of the training step.
        reshard: give up gathered weights of blocks after the forward pass.
    """

    def __init__(self, model: Assembled, mesh: Mesh, precision: str, reshard: bool) -> None:
        split(model, mesh)
        shard(model, model.backbone.blocks.values(), mesh, precision, reshard)
        materialise(model, mesh.device)
        super().__init__(model, mesh, precision)
        self._reshard = reshard

    def run(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """See `Microbatched`."""
        result: tuple[Sums, Tensor | None] = self.model(own_part(batch, self.mesh), output)
        return result

    @contextmanager
    def sync_gradients(self, enabled: bool) -> Iterator[None]:
        """See `Microbatched`. Weights that are kept after a forward pass are kept for all microbatches."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(enabled)
        self.model.set_reshard_after_backward(enabled, recurse=not self._reshard)
        yield

    @torch.no_grad()
    def measure(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """See `Layout`."""
        with self.autocast():
            sums, kept = self.run(batch, output)
        give_up([self.model])
        return self.share(sums), kept


def split(model: Assembled, mesh: Mesh) -> None:
    """Share out tensors and tokens, as far as the mesh asks for it."""
    if mesh.degrees.tp > 1:
        share_tensors(model, mesh.devices["tp"])
    if mesh.degrees.cp > 1:
        share_tokens(model, mesh.context_group)


def own_part(batch: Batch, mesh: Mesh) -> Batch:
    """The tokens of this process, on its device."""
    if mesh.degrees.cp > 1:
        batch = own_tokens(batch, mesh.degrees.cp, mesh.coordinate["cp"])
    return batch.to(mesh.device)
