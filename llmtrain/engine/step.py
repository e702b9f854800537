"""One optimizer step on a model that sees whole microbatches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmtrain.data.batch import Batch
from llmtrain.objective.build import Objective
from llmtrain.optim.clip import clip_gradients
from llmtrain.parallel.data import Replicated
from llmtrain.utils import dist
from llmtrain.utils.seed import derive_seed

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the context in which a forward pass runs."""


def autocast(device: torch.device, precision: str) -> Autocast:
    """Maker of the context in which a forward pass runs; weights stay fp32."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


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


class PlainStep:
    """Forward and backward on each microbatch, clip, update.

    Losses are divided by the label counts of the whole global batch before the backward pass: a sum over
    a global count, never a mean of means. That is why world size and accumulation do not matter.

    Args:
        model: wrapped for its layout.
        optimizer: any; a fused one skips a bad step on the device itself.
        objective: weighs the sums.
        device: of the model.
        precision: fp32, bf16 or fp16; fp16 scales the loss.
        clip_norm: 0 does not clip.
        seed: of dropout.
    """

    def __init__(
        self,
        model: Replicated,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        *,
        device: torch.device,
        precision: str,
        clip_norm: float,
        seed: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.device = device
        self.precision = precision
        self.autocast = autocast(device, precision)
        self.clip_norm = clip_norm
        self.seed = seed
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.parameters: list[nn.Parameter] = list(model.module.parameters())

    def __call__(self, batches: list[Batch], counts: dict[str, float], step: int) -> StepResult:
        """Train on the microbatches of one global batch.

        Args:
            batches: this process's microbatches, on the CPU.
            counts: labels in all microbatches of all processes, at least 1 each.
            step: number of this step.
        """
        total: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            # Dropout is a function of the step, not of what ran before: no generator state is saved.
            torch.manual_seed(derive_seed(self.seed, "dropout", step, number, dist.rank()))
            with self.model.sync_gradients(number == len(batches) - 1):
                with self.autocast():
                    sums = self.model.module(batch.to(self.device))
                    loss, stats = self.objective.loss(sums, counts)
                self.scaler.scale(loss * self.model.loss_scale).backward()
            for name, value in stats.items():
                total[name] = total[name] + value if name in total else value
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, self.clip_norm)
        finite = torch.stack([total["loss"].isfinite(), norm.isfinite()])
        self._update(norm)
        return StepResult(total, norm, finite)

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
        with self.autocast():
            sums = self.model.module(batch.to(self.device))
            loss, _ = self.objective.loss(sums, dict.fromkeys(self.objective.count(batch), 1.0))
        loss.backward()
        self.clear_gradients()

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def non_finite_gradients(self) -> list[str]:
        """Names of parameters whose gradient is not finite; waits for the device."""
        return [
            name
            for name, parameter in self.model.module.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
