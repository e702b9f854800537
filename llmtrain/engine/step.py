"""One optimizer step, in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.objective.build import Objective
from llmtrain.optim.average import Average
from llmtrain.parallel.layout import Layout, Replicated, Sums
from llmtrain.utils.seed import derive_seed
from llmtrain.utils.shares import own_share


@dataclass
class StepResult:
    """What a step leaves: all on the device.

    Attributes:
        stats: this process's part of the statistics; they add up over the processes.
        norm: gradient norm before clipping, of the whole model.
        finite: (2,) bool: this process's loss, and the norm. If the norm is not, nothing was updated.
    """

    stats: dict[str, Tensor]
    norm: Tensor
    finite: Tensor


class Step:
    """Forward and backward on each microbatch, clip, update.

    Losses are divided by the label counts of the whole global batch before the backward pass: a sum over
    a global count, never a mean of means. That is why layout and accumulation do not matter.

    Args:
        layout: runs the model.
        optimizer: any; a fused one skips a bad step on the device itself.
        objective: weighs the sums.
        clip_norm: 0 does not clip.
        seed: of dropout.
        average: of the weights, if one is kept.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        clip_norm: float,
        seed: int,
        average: Average | None = None,
    ) -> None:
        self.layout = layout
        self.optimizer = optimizer
        self.objective = objective
        self.clip_norm = clip_norm
        self.seed = seed
        self.average = average
        self.scaler = torch.amp.GradScaler(layout.device.type, enabled=layout.precision == "fp16")

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.layout.device

    def __call__(self, batches: Sequence[Batch], counts: dict[str, float], step: int) -> StepResult:
        """Train on the microbatches of one global batch.

        Args:
            batches: this process's microbatches, on the CPU.
            counts: labels in all microbatches of the global batch, at least 1 each.
            step: number of this step.
        """

        def weigh(sums: Sums) -> tuple[Tensor, dict[str, Tensor]]:
            loss, stats = self.objective.loss(sums, counts)
            return self.scaler.scale(loss), stats

        total = self.layout.accumulate(batches, weigh, lambda microbatch: self._seed(step, microbatch))
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = self.layout.clip(self.clip_norm)
        finite = torch.stack([total["loss"].isfinite(), norm.isfinite()])
        self._update(norm)
        if self.average is not None:
            self.average.update(finite[1])
        return StepResult(total, norm, finite)

    def _seed(self, step: int, microbatch: int) -> None:
        """Make dropout a function of the step, not of what ran before: no generator state is saved.

        The number along tp stands in the lowest bits, see `parallel.tensor.same_dropout`.
        """
        mesh = self.layout.mesh
        place = mesh.data_rank, mesh.coordinate["cp"], mesh.coordinate["pp"]
        seed = derive_seed(self.seed, "dropout", step, microbatch, *place) ^ mesh.coordinate["tp"]
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # the other takes half a millisecond to find no GPU
        else:
            torch.manual_seed(seed)

    def _update(self, norm: Tensor) -> None:
        """Let the optimizer step unless the norm is not finite; decided on the device."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # The contract that torch's own GradScaler uses with fused optimizers: a non-zero
            # `found_inf` leaves weights and state as they are, without the host having to look.
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif norm.isfinite():  # waits for the device
            self.optimizer.step()

    def settle(self, batch: Batch) -> None:
        """Forward and backward on a batch without labels, before the first step.

        DDP lays out its buckets anew after its first backward pass, and with more than two processes the
        place of a gradient in a bucket decides the order of its sum. So that the steps after a restart
        have the same bits as those of a run that was never stopped, all of them come after that moment.
        """
        if isinstance(self.layout, Replicated) and self.layout.mesh.degrees.world > 1:
            counts = dict.fromkeys(self.objective.count(batch), 1.0)
            self.layout.accumulate(
                [batch], lambda sums: self.objective.loss(sums, counts), lambda microbatch: None
            )
            self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def non_finite_gradients(self) -> list[str]:
        """Names of parameters whose gradient is not finite in this process; waits for the device."""
        bad = []
        for name, parameter in self.layout.parameters.items():
            gradient = parameter.grad
            if gradient is not None and not own_share(gradient).isfinite().all():
                bad.append(name)
        return bad
