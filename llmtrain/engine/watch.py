"""Hooks that only look: norms of blocks, sample texts, a profile; no bit of the training changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.step import StepResult
from llmtrain.optim.clip import part_norms
from llmtrain.utils import dist
from llmtrain.utils.shares import own_share

MOST_OPERATIONS = 40
"""Lines of the table of operations."""

Draw = Callable[[], Iterable[tuple[str, str]]]
"""Draws sample texts: prompt and what follows. Collective; the texts are told in rank 0 alone."""


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to: `block_03`, `embedding`, `norm`, `head`."""
    parts = name.split(".")
    if parts[:2] == ["backbone", "blocks"]:
        return f"block_{int(parts[2]):02}"
    return parts[1] if parts[0] == "backbone" else parts[0]


class NormsHook(Hook):
    """Reports the norms of weights and gradients (before clipping) of each part of the model.

    Sums of squares of what each process has are added up in one message, on log steps only. A parameter, or
    a shard of one, that several processes have alike counts once.

    Args:
        every: steps between reports.
        names: of all parameters of the whole model, in any process the same.
        clip_norm: to which gradients are clipped, 0 if they are not.
    """

    def __init__(self, every: int, names: Iterable[str], clip_norm: float) -> None:
        self.every = every
        self.names = sorted(names)
        self.groups = list(dict.fromkeys(sorted(map(group_of, self.names))))
        self.clip_norm = clip_norm
        self._share: dict[str, float] = {}

    def start(self, engine: Engine) -> None:
        """Find out how many processes have each parameter. Collective."""
        own = engine.step.layout.parameters
        holders = dist.sum_over_ranks([float(name in own) for name in self.names])
        self._share = {
            name: num_shards(own[name]) / count
            for name, count in zip(self.names, holders, strict=True)
            if name in own
        }

    def before_clear(self, engine: Engine, result: StepResult) -> None:
        """Report if it is time. Collective."""
        step = engine.state.step
        if step % self.every and step != engine.total_steps:
            return
        own = {name: one for name, one in engine.step.layout.parameters.items() if name in self._share}
        gradients = {name: one.grad for name, one in own.items() if one.grad is not None}
        sums = self._sums(own) + self._sums(gradients)
        norms = [total**0.5 for total in dist.sum_over_ranks(sums)]
        clipped = 1.0
        if self.clip_norm > 0:
            clipped = max((float(result.norm) + 1e-6) / self.clip_norm, 1.0)  # as torch has scaled them
        count = len(self.groups)
        record = {f"weight_norm/{name}": norm for name, norm in zip(self.groups, norms[:count], strict=True)}
        record |= {
            f"gradient_norm/{name}": norm * clipped
            for name, norm in zip(self.groups, norms[count:], strict=True)
        }
        engine.report({"kind": "norms", "step": step, **record})

    def _sums(self, tensors: Mapping[str, Tensor]) -> list[float]:
        """This process's share of the sum of squares of each group."""
        totals = dict.fromkeys(self.groups, 0.0)
        local = [own_share(one) for one in tensors.values()]
        norms = torch.stack(torch._foreach_norm([part_norms(one) for one in local])).tolist() if local else []
        for name, norm in zip(tensors, norms, strict=True):
            totals[group_of(name)] += norm**2 * self._share[name]
        return list(totals.values())


def num_shards(parameter: nn.Parameter | Tensor) -> int:
    """Into how many different parts a parameter is shared out."""
    number = 1
    for axis, placement in enumerate(getattr(parameter, "placements", ())):
        if not placement.is_replicate():
            number *= parameter.device_mesh.size(axis)  # type: ignore[union-attr]
    return number


class SampleHook(Hook):
    """Draws sample texts every so many steps and after the last one.

    Args:
        every: steps.
        draw: makes the texts.
    """

    def __init__(self, every: int, draw: Draw) -> None:
        self.every = every
        self.draw = draw

    def after_step(self, engine: Engine) -> None:
        """Draw if it is time; the time it takes does not count as training."""
        step = engine.state.step
        if step % self.every and step != engine.total_steps:
            return
        engine.tracker.reduce()  # waits for the device, so that its work is not counted as a pause
        with engine.throughput.paused():
            for number, (prompt, sample) in enumerate(self.draw()):
                text = f"sample of step {step}: {prompt}{sample}"
                engine.event("sample", text, step=step, number=number, prompt=prompt, sample=sample)


class ProfileHook(Hook):
    """Measures every operation of some steps; each process writes a trace and a table.

    Args:
        first: step that is measured first, counted from 1.
        last: the last one.
        folder: for the files.
    """

    def __init__(self, first: int, last: int, folder: Path) -> None:
        self.first, self.last = first, last
        self.folder = folder
        self._profiler: torch.profiler.profile | None = None

    def start(self, engine: Engine) -> None:
        """Begin where the first step of this process is to be measured."""
        self._begin(engine)

    def after_step(self, engine: Engine) -> None:
        """Begin before the first step of the window, write behind its last one."""
        if engine.state.step >= min(self.last, engine.total_steps):
            self._write(engine)
        self._begin(engine)

    def finish(self, engine: Engine) -> None:
        """Write what a stop has cut short."""
        self._write(engine)

    def _begin(self, engine: Engine) -> None:
        if engine.state.step + 1 == self.first and engine.state.step < engine.total_steps:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if engine.step.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()

    def _write(self, engine: Engine) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        with engine.throughput.paused():
            self.folder.mkdir(parents=True, exist_ok=True)
            trace = self.folder / f"rank{dist.rank()}.trace.json.gz"
            profiler.export_chrome_trace(str(trace))
            order = "self_cuda_time_total" if engine.step.device.type == "cuda" else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=MOST_OPERATIONS)
            (self.folder / f"rank{dist.rank()}.operations.txt").write_text(table, encoding="utf-8")
        text = f"profile of steps {self.first} to {engine.state.step} in {self.folder}"
        engine.event("profile", text, step=engine.state.step, path=str(self.folder))
