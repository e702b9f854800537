"""Pipeline parallel: the blocks of a model one process after another, by torch's own schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.assembled import Assembled, Output
from llmtrain.model.build import materialise, tied_names
from llmtrain.optim.clip import clip_by_norm, gradient_norm
from llmtrain.parallel.fully_sharded import give_up, shard
from llmtrain.parallel.layout import Layout, Sums, Weigh, autocast
from llmtrain.parallel.mesh import Mesh
from llmtrain.parallel.sharded import own_part, split
from llmtrain.schema.parallel import ParallelConfig, PipelineSchedule, Reshard, stage_blocks

SCHEDULES: dict[PipelineSchedule, Callable[..., Any]] = {
    PipelineSchedule.gpipe: ScheduleGPipe,
    PipelineSchedule.one_forward_one_backward: Schedule1F1B,
    PipelineSchedule.interleaved: ScheduleInterleaved1F1B,
    PipelineSchedule.zero_bubble: ScheduleInterleavedZeroBubble,
}
"""Torch's schedule for each of ours."""

TIED = "backbone.embedding.weight"
"""The parameter that the first and the last stage both have where the head shares it."""


class Stage(nn.Module):
    """Some blocks of a model; the first stage embeds, the last has norm and head.

    Its modules are the model's own, which keeps their names for everybody else.

    Args:
        model: whose part it is.
        blocks: numbers of its blocks.
        first: whether it is the first stage.
        last: whether it is the last stage.
        tied: whether the head shares the weight of the embedding.
        context: makes the context in which the forward pass runs.
        seed: called with the number of a microbatch before it is trained on.
    """

    def __init__(
        self,
        model: Assembled,
        blocks: Iterable[int],
        *,
        first: bool,
        last: bool,
        tied: bool,
        context: Callable[[], AbstractContextManager[object]],
        seed: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.is_first, self.is_last = first, last
        self.numbers = [str(number) for number in blocks]
        self._model = (model,)  # in a tuple, so that it does not become a part of this module
        self._context, self._seed = context, seed
        backbone = model.backbone
        if first:
            outer = ("blocks", "norm")
            self.inputs = nn.ModuleList(one for name, one in backbone.named_children() if name not in outer)
        elif last and tied:
            self.embedding = backbone.embedding
        self.blocks = nn.ModuleList(backbone.blocks[number] for number in self.numbers)
        if last:
            self.norm, self.head = backbone.norm, model.head

    def forward(
        self,
        x_BTD: Tensor | None = None,
        batch: Batch | None = None,
        output: Output | None = None,
        number: Tensor | None = None,
        **fields: Any,
    ) -> Tensor | tuple[Tensor | Sums, Tensor | None]:
        """Its part of a forward pass.

        Args:
            x_BTD: the stream that the stage before gave; None for the first one.
            batch: what to measure.
            output: what to keep of the predictions when measuring.
            number: of the microbatch to train on, (1,) on the CPU.
            fields: of the microbatch, as torch's schedules pass them.

        Returns:
            in training the stream, (B, T, D), or of the last stage the head's sums, one after another; when
            measuring the stream or the sums by name, and what was asked for of the predictions.
        """
        if number is not None:
            self._seed(int(number))
        result, kept = self._work(x_BTD, batch or Batch(**fields), output)
        if batch is not None:
            return result, kept
        if isinstance(result, Tensor):
            return result
        return torch.stack([result[name].float() for name in self.head.sum_names])

    def _work(
        self, x_BTD: Tensor | None, batch: Batch, output: Output | None
    ) -> tuple[Tensor | Sums, Tensor | None]:
        backbone = self._model[0].backbone
        with self._context():
            x_BTD = backbone.embed(batch) if x_BTD is None else x_BTD
            x_BTD = backbone.run(x_BTD, batch, self.numbers)
            if not self.is_last:
                return x_BTD, None
            result: tuple[Sums, Tensor | None] = self.head(self.norm(x_BTD), batch, output)
            return result


class Pipelined(Layout):
    """Each process has one or more stages, inside of which tensors, tokens and weights are shared out too.

    Args:
        model: on the meta device; what other processes have is taken out of it.
        mesh: the processes.
        precision: of the training step.
        config: schedule and cuts.
        head_share: what the head costs, in blocks.
    """

    def __init__(
        self, model: Assembled, mesh: Mesh, precision: str, config: ParallelConfig, head_share: float
    ) -> None:
        split(model, mesh)
        tied = any(first == TIED for first, _ in tied_names(model))
        self.schedule = config.schedule
        self.dim, self.sum_names = model.backbone.dim, model.head.sum_names
        self.num_stages = config.num_stages(mesh.degrees.pp)
        blocks = stage_blocks(len(model.backbone.blocks), self.num_stages, config.cuts, head_share)
        self.stages: dict[int, Stage] = {
            number: Stage(
                model,
                blocks[number],
                first=number == 0,
                last=number == self.num_stages - 1,
                tied=tied,
                context=lambda: autocast(mesh.device, precision),
                seed=partial(self._seed_stage, number),
            )
            for number in range(mesh.coordinate["pp"], self.num_stages, mesh.degrees.pp)
        }
        for stage in self.stages.values():
            shard(stage, stage.blocks, mesh, precision, config.reshard is Reshard.always)
            materialise(stage, mesh.device)
        take_out_foreign(model, self.stages.values())
        super().__init__(model, mesh, precision)
        self.group: torch_dist.ProcessGroup = mesh.devices["pp"].get_group()
        self.ends = ends_of_pipelines(mesh) if tied else None
        self._runner: Any = None
        self._weigh: Weigh | None = None
        self._seed: Callable[[int], None] = lambda number: None
        self._stats: dict[str, Tensor] = {}

    def accumulate(
        self, batches: Sequence[Batch], weigh: Weigh, seed: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """See `Layout`. Each stage seeds each microbatch anew, so that the schedule does not matter."""
        parts = [tensors(own_part(batch, self.mesh)) for batch in batches]
        fields = {name: joined(name, [part[name] for part in parts]) for name in parts[0]}
        if self._runner is None:
            self._runner = self._make_runner(len(batches), parts[0]["ids"].shape)
        nothing = {name: torch.zeros((), device=self.device) for name in self.sum_names}
        self._weigh, self._seed, self._stats = weigh, seed, weigh(nothing)[1]
        numbers = torch.arange(len(batches))
        self._runner.step(target=numbers, return_outputs=False, number=numbers, **fields)
        self._sum_tied_gradients()
        return self.share(self._stats)

    def _seed_stage(self, stage: int, microbatch: int) -> None:
        """Stages of one process draw different numbers for a microbatch."""
        self._seed(microbatch * self.num_stages + stage)

    def _make_runner(self, num_microbatches: int, shape: torch.Size) -> Any:
        """Torch's schedule over the stages of this process, for microbatches of one shape."""
        stream = torch.empty(
            (shape[0], shape[1] // self.mesh.degrees.tp, self.dim), device="meta", requires_grad=True
        )
        sums = torch.empty(len(self.sum_names), device="meta", requires_grad=True)
        stages = [
            PipelineStage(
                stage,
                number,
                self.num_stages,
                self.device,
                input_args=() if stage.is_first else (stream,),
                output_args=(sums,) if stage.is_last else (stream,),
                group=self.group,
            )
            for number, stage in self.stages.items()
        ]
        return SCHEDULES[self.schedule](
            stages if self.schedule.interleaves else stages[0],
            num_microbatches,
            loss_fn=self._loss,
            scale_grads=False,
        )

    def _loss(self, sums: Tensor, target: Tensor) -> Tensor:
        """Loss of a microbatch, in the last stage; its statistics are added up."""
        assert self._weigh is not None
        with self.autocast():
            loss, stats = self._weigh(dict(zip(self.sum_names, sums, strict=True)))
        self._stats = {name: total + stats[name].detach() for name, total in self._stats.items()}
        return loss

    def _sum_tied_gradients(self) -> None:
        """The embedding is in the first and in the last stage: both get the sum of their gradients."""
        if self.ends is not None and TIED in self.parameters and self.parameters[TIED].requires_grad:
            gradient = self.parameters[TIED].grad
            assert gradient is not None
            torch_dist.all_reduce(gradient.to_local(), group=self.ends)  # type: ignore[attr-defined]

    def clip(self, max_norm: float) -> Tensor:
        """See `Layout`; the norm is over all stages, the tied weight counted once."""
        again = self.ends is not None and self.mesh.coordinate["pp"] > 0
        counted = [one for name, one in self.parameters.items() if not (again and name == TIED)]
        square = gradient_norm(counted) ** 2
        torch_dist.all_reduce(square, group=self.group)
        norm = square.sqrt()
        clip_by_norm(self.parameters.values(), max_norm, norm)
        return norm

    @torch.no_grad()
    def measure(self, batch: Batch, output: Output | None = None) -> tuple[Sums, Tensor | None]:
        """See `Layout`; forward passes only, without a schedule."""
        part = own_part(batch, self.mesh)
        rows, length = part.ids.shape
        shape = (rows, length // self.mesh.degrees.tp, self.dim)
        ranks = torch_dist.get_process_group_ranks(self.group)
        sums: Sums = {name: torch.zeros((), device=self.device) for name in self.sum_names}
        kept, sent = None, []
        for number, stage in self.stages.items():
            x_BTD = None
            if not stage.is_first:
                x_BTD = torch.empty(shape, device=self.device)
                torch_dist.recv(x_BTD, ranks[(number - 1) % len(ranks)], group=self.group)
            result, kept = stage(x_BTD, part, output)
            if isinstance(result, Tensor):
                result = result.contiguous()
                work = torch_dist.isend(result, ranks[(number + 1) % len(ranks)], group=self.group)
                sent.append((work, result))
            else:
                sums = result
        for work, _ in sent:
            if work is not None:
                work.wait()
        give_up(self.stages.values())
        return self.share(sums), kept


def tensors(batch: Batch) -> dict[str, Tensor]:
    """The fields of a batch that are there."""
    every = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in every.items() if isinstance(value, Tensor)}


def joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    """A field of several batches, one after another; places for labels are padded to one number."""
    width = max(part.shape[1] for part in parts)
    filler = IGNORE if name in ("labels", "sample_labels") else 0
    whole = parts[0].new_full((sum(map(len, parts)), width, *parts[0].shape[2:]), filler)
    for own, part in zip(whole.split([len(part) for part in parts]), parts, strict=True):
        own[:, : part.shape[1]] = part
    return whole


def take_out_foreign(model: Assembled, stages: Iterable[Stage]) -> None:
    """Leave in a model only the parameters of some stages."""
    own = {id(module) for stage in stages for module in stage.modules()}
    for number in list(model.backbone.blocks):
        if id(model.backbone.blocks[number]) not in own:
            del model.backbone.blocks[number]
    for parent, name in ((model.backbone, name) for name, _ in list(model.backbone.named_children())):
        if name != "blocks" and id(getattr(parent, name)) not in own:
            setattr(parent, name, nn.Identity())
    if id(model.head) not in own:
        model.head = nn.Identity()  # type: ignore[assignment]


def ends_of_pipelines(mesh: Mesh) -> torch_dist.ProcessGroup | None:
    """The first and the last process of the own pipeline; None in between. Collective over all."""
    stride = mesh.degrees.world // mesh.degrees.pp
    own = None
    for first in range(stride):
        pair = [first, first + mesh.degrees.world - stride]
        group = torch_dist.new_group(pair)
        if mesh.rank in pair:
            own = group
    return own
