"""A model as a layout runs it: what the engine needs to know of it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled, Output
from llmtrain.model.layers.embedding import TokenEmbedding
from llmtrain.optim.clip import clip_gradients
from llmtrain.optim.row_gradient import RowGradient
from llmtrain.parallel.mesh import Mesh

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Sums = dict[str, Tensor]
"""A head's sums over labels, by name."""

Weigh = Callable[[Sums], tuple[Tensor, dict[str, Tensor]]]
"""Sums -> the loss that gradients are taken of, and statistics."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs; weights stay fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


class Layout(ABC):
    """The part of a model that this process has, and how all processes run it together.

    Args:
        model: with the parameters of this process, by their names on one process.
        mesh: the processes.
        precision: fp32, bf16 or fp16.

    Attributes:
        parameters: of this process, by name; the same objects for the whole run.
    """

    def __init__(self, model: Assembled, mesh: Mesh, precision: str) -> None:
        self.model = model
        self.mesh = mesh
        self.precision = precision
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.mesh.device

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which a forward pass runs."""
        return autocast(self.device, self.precision)

    def start(self) -> None:  # noqa: B027
        """The parameters have their values: what is left to do before the first step."""

    @abstractmethod
    def accumulate(
        self, batches: Sequence[Batch], weigh: Weigh, seed: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """Forward and backward passes on the microbatches of a step; gradients add up.

        Args:
            batches: of this process, on the CPU.
            weigh: its losses add up over microbatches and processes.
            seed: called with the number of a microbatch before its forward pass.

        Returns:
            sums of the statistics over the microbatches; they add up over the processes.
        """

    @abstractmethod
    def measure(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """The sums for a batch, without gradients; they add up over the processes. Collective.

        Args:
            batch: of this process, on the CPU.
            output: what to keep of the predictions.

        Returns:
            sums, and what was asked for; the latter only in the leaders of the mesh.
        """

    def clip(self, max_norm: float) -> Tensor:
        """Clip the gradients of the whole model by their global norm; see `clip_gradients`. Collective."""
        return clip_gradients(self.parameters.values(), max_norm)

    def share(self, sums: Sums) -> Sums:
        """Sums that several processes find alike, as parts that add up."""
        if self.mesh.num_same_sums == 1:
            return sums
        return {name: value / self.mesh.num_same_sums for name, value in sums.items()}


class Microbatched(Layout):
    """Whole forward and backward passes, one microbatch after another."""

    loss_scale = 1.0

    @abstractmethod
    def run(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """A forward pass on a batch on the CPU."""

    @abstractmethod
    def sync_gradients(self, enabled: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the backward pass only if `enabled`: in the last microbatch."""

    def accumulate(
        self, batches: Sequence[Batch], weigh: Weigh, seed: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """See `Layout`."""
        total: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            seed(number)
            with self.sync_gradients(number == len(batches) - 1):
                with self.autocast():
                    loss, stats = weigh(self.run(batch)[0])
                (loss * self.loss_scale).backward()
            for name, value in stats.items():
                total[name] = total[name] + value if name in total else value
        return self.share(total)


class Replicated(Microbatched):
    """A model that is trained by one process alone, or by several on different rows (DDP).

    Our losses are divided by global counts, so gradients have to be summed; DDP averages them.
    """

    def __init__(self, model: Assembled, mesh: Mesh, precision: str) -> None:
        super().__init__(model, mesh, precision)
        self._module: nn.Module = model
        self._kept: list[RowGradient] = []

    def start(self) -> None:
        """Wrap the model; from here on processes exchange gradients. One process keeps some of them."""
        world = self.mesh.degrees.world
        if world == 1 and self.device.type == "cpu" and os.environ.get("LLMTRAIN_KERNELS") != "0":
            self._kept = keep_row_gradients(self.model)
        if world > 1:
            self.loss_scale = float(world)
            self._module = DistributedDataParallel(
                self.model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def run(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """See `Microbatched`."""
        result: tuple[Sums, Tensor | None] = self._module(batch.to(self.device), output)
        return result

    def accumulate(
        self, batches: Sequence[Batch], weigh: Weigh, seed: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """See `Layout`."""
        for one in self._kept:
            one.attach()
        return super().accumulate(batches, weigh, seed)

    def clip(self, max_norm: float) -> Tensor:
        """See `Layout`."""
        return clip_gradients(self.parameters.values(), max_norm, self._kept)

    def sync_gradients(self, enabled: bool) -> AbstractContextManager[None]:
        """See `Microbatched`."""
        if not enabled and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()

    @torch.inference_mode()
    def measure(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """See `Layout`; each process works for itself."""
        with self.autocast():
            result: tuple[Sums, Tensor | None] = self.model(batch.to(self.device), output)
        return result


def keep_row_gradients(model: nn.Module) -> list[RowGradient]:
    """Keep the gradients of the token embeddings of a model on a CPU whose weights learn and are not shared.

    Where an output projection shares the weight, every row has a gradient.
    """
    weights = [id(one) for part in model.modules() for one in part.parameters(recurse=False)]
    kept = []
    for part in (one for one in model.modules() if isinstance(one, TokenEmbedding)):
        if part.weight.requires_grad and weights.count(id(part.weight)) == 1:
            part.sparse_gradient = True
            kept.append(RowGradient(part.weight))
    return kept
