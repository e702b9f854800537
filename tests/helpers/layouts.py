"""A training in any layout, and what it gives: to be compared with one process."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.adapt.lora import add_adapters
from llmtrain.data.batch import Batch
from llmtrain.engine.evaluate import evaluate
from llmtrain.engine.step import Step
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.model.compile import compile_blocks
from llmtrain.model.initialise import fill, initialise
from llmtrain.model.recompute import keep_products
from llmtrain.optim.optimizer import build_optimizer, freeze, frozen_names
from llmtrain.parallel.apply import lay_out
from llmtrain.parallel.layout import Layout
from llmtrain.parallel.mesh import Mesh
from llmtrain.schema.optim import AdamWConfig, OptimConfig
from llmtrain.schema.parallel import ParallelConfig, PipelineSchedule, Reshard, resolve_degrees
from llmtrain.utils import dist
from tests.helpers.works import ROWS, Work

CLIP_NORM = 0.5
"""Below all gradient norms here, so that clipping takes part."""


@dataclass(frozen=True)
class Setup:
    """A way to train.

    Attributes:
        world: number of processes.
        parallel: degrees and the rest.
        microbatches: of each process in a step.
        precision: of the training step.
        recompute: what blocks compute is computed again in the backward pass.
        selective: only what is no product is computed again.
        compiler: of blocks; None compiles nothing.
        optim: the optimizer.
    """

    world: int
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    microbatches: int = 2
    precision: str = "fp32"
    recompute: bool = False
    selective: bool = False
    compiler: str | None = None
    optim: OptimConfig = field(default_factory=lambda: AdamWConfig(lr=1e-3))


ALONE = Setup(1, microbatches=1)


def setup(world: int, microbatches: int = 2, **parallel: Any) -> Setup:
    """A way to train in fp32."""
    return Setup(world, ParallelConfig(**parallel), microbatches)


ALWAYS, NEVER = Reshard.always, Reshard.never
GPIPE, INTERLEAVED, ZERO_BUBBLE = (
    PipelineSchedule.gpipe,
    PipelineSchedule.interleaved,
    PipelineSchedule.zero_bubble,
)
SETUPS: dict[str, Setup] = {
    "ddp2": setup(2),
    "fsdp2": setup(2, dp_shard=2),
    "fsdp2_kept": setup(2, 4, dp_shard=2, reshard=NEVER),
    "tp2": setup(2, tp=2),
    "cp2": setup(2, cp=2),
    "pp2": setup(2, 4, pp=2),
    "pp2_gpipe": setup(2, 4, pp=2, schedule=GPIPE),
    "pp2_interleaved": setup(2, 4, pp=2, schedule=INTERLEAVED),
    "pp2_zero_bubble": setup(2, 4, pp=2, schedule=ZERO_BUBBLE),
    "fsdp2_recompute": replace(setup(2, dp_shard=2), recompute=True),
    "tp2_recompute": replace(setup(2, tp=2), recompute=True),
    "pp2_recompute": replace(setup(2, 4, pp=2), recompute=True),
    "fsdp2_selective": replace(setup(2, dp_shard=2), selective=True),
    "tp2_selective": replace(setup(2, tp=2), selective=True),
    "pp2_selective": replace(setup(2, 4, pp=2), selective=True),
    "fsdp2_selective_compiled": replace(setup(2, dp_shard=2), selective=True, compiler="aot_eager"),
    "tp2_selective_compiled": replace(setup(2, tp=2), selective=True, compiler="aot_eager"),
    "zero_bubble_recompute": replace(setup(2, 4, pp=2, schedule=ZERO_BUBBLE), recompute=True),
    "fsdp2_compiled": replace(setup(2, dp_shard=2), compiler="aot_eager"),
    "tp2_compiled": replace(setup(2, tp=2), compiler="aot_eager"),
    "cp2_compiled": replace(setup(2, cp=2), compiler="aot_eager"),
    "pp2_compiled": replace(setup(2, 4, pp=2), compiler="aot_eager"),
    "fsdp2_inductor": replace(setup(2, dp_shard=2), compiler="inductor"),
    "tp2_inductor": replace(setup(2, tp=2), compiler="inductor"),
    "fsdp2_bf16": replace(setup(2, dp_shard=2), precision="bf16"),
    "tp2_bf16": replace(setup(2, tp=2), precision="bf16"),
    "cp2_bf16": replace(setup(2, cp=2), precision="bf16"),
    "pp2_bf16": replace(setup(2, 4, pp=2), precision="bf16"),
    "hsdp2x2": setup(4, dp_replicate=2, dp_shard=2),
    "fsdp4": setup(4, dp_shard=4),
    "tp4": setup(4, tp=4),
    "pp4": setup(4, 4, pp=4),
    "dp2_tp2": setup(4, tp=2),
    "dp2_pp2": setup(4, pp=2),
    "fsdp2_tp2": setup(4, dp_shard=2, tp=2),
    "fsdp2_pp2": setup(4, dp_shard=2, pp=2),
    "fsdp2_pp2_always": setup(4, 4, dp_shard=2, pp=2, reshard=ALWAYS),
    "cp2_tp2": setup(4, cp=2, tp=2),
    "cp2_pp2": setup(4, cp=2, pp=2),
    "tp2_pp2": setup(4, 4, tp=2, pp=2),
    "tp2_pp2_interleaved": setup(4, 4, tp=2, pp=2, schedule=INTERLEAVED),
    "dp2_tp2_pp2": setup(8, tp=2, pp=2),
    "fsdp2_tp2_pp2": setup(8, dp_shard=2, tp=2, pp=2),
    "cp2_tp2_dp2": setup(8, cp=2, tp=2),
    "cp2_tp2_pp2": setup(8, cp=2, tp=2, pp=2),
    "hsdp2x2_tp2": setup(8, dp_replicate=2, dp_shard=2, tp=2),
}
"""Layouts, by name."""


@dataclass
class Found:
    """What a training gave, in one of its processes.

    Attributes:
        stage: place in the pipeline.
        state_bytes: of parameters, gradients and the optimizer's state, after a step.
        losses: of each step, and of the evaluation behind the last one.
        norms: of the gradients, before clipping.
        gradients: of the first step, clipped; of the parameters that are here, in the first process of each
            stage only.
        stats: of the evaluation before the first step.
        outputs: of that evaluation, if asked for.
    """

    stage: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    state_bytes: int = 0
    stats: dict[str, float] = field(default_factory=dict)
    outputs: np.ndarray | None = None


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    values = {one.name: getattr(batch, one.name) for one in dataclasses.fields(batch)}
    return Batch(**{name: value[rows] for name, value in values.items() if isinstance(value, Tensor)})


def share(batch: Batch, mesh: Mesh, microbatches: int) -> list[Batch]:
    """The microbatches of a process, as the loader shares them out."""
    micro = ROWS // (mesh.degrees.data * microbatches)
    first = range(mesh.data_rank * micro, ROWS, micro * mesh.degrees.data)
    return [part(batch, slice(start, start + micro)) for start in first]


def here(parallel: ParallelConfig) -> Mesh:
    """The mesh of all processes."""
    return Mesh.here(resolve_degrees(parallel, dist.world_size())[0], torch.device("cpu"))


def prepare(work: Work, how: Setup) -> Step:
    """A model in its layout with its first weights, and what trains it."""
    model = build_model(work.model, work.objective.build_head)
    add_adapters(model, work.adapt)
    frozen, num_blocks = frozen_names(model, work.freeze), len(model.backbone.blocks)
    model.backbone.recompute = how.recompute
    if how.selective:
        keep_products(model)
    if how.compiler is not None:
        compile_with(how.compiler, model)
    layout = lay_out(model, here(how.parallel), how.parallel, how.precision)
    freeze(model, frozen)
    optimizer = build_optimizer(how.optim, model, num_blocks=num_blocks)
    initialise(model, 0)
    fill_adapters(model)
    layout.start()
    return Step(layout, optimizer, work.objective, clip_norm=CLIP_NORM, seed=0)


def fill_adapters(model: Assembled) -> None:
    """Let adapters change something from the start: with B = 0 there would be no gradient of A."""
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            chooser = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            fill(parameter, torch.randn(parameter.shape, generator=chooser) / 10)


def compile_with(compiler: str, model: Assembled) -> None:
    """Compile the blocks; other compilers than ours are quicker, and make the same graphs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(model)
    if compiler != "inductor":
        for block in model.backbone.blocks.values():
            block.compile(backend=compiler)


def run(work: Work, how: Setup, steps: int = 2) -> Found:
    """Evaluate, train and evaluate again."""
    step = prepare(work, how)
    mesh = step.layout.mesh
    batches = share(work.batch(100), mesh, how.microbatches)
    measured = evaluate(step.layout, work.objective, batches, output=work.output)
    assert measured is not None
    found = Found(mesh.coordinate["pp"], stats=measured.stats | measured.counts, outputs=measured.outputs)
    for number in range(steps):
        batch = work.batch(number)
        result = step(share(batch, mesh, how.microbatches), work.objective.count(batch), number)
        found.losses.append(float(dist.gather(result.stats["loss"]).double().sum()))
        found.norms.append(float(result.norm))
        if number == 0:
            found.gradients, found.state_bytes = gradients(step.layout), state_bytes(step)
        step.clear_gradients()
    measured = evaluate(step.layout, work.objective, batches)
    assert measured is not None
    found.losses.append(measured.stats["loss"])
    assert how.compiler is None or torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    return found


def local(tensor: Any) -> Tensor:
    """The share of a tensor that this process has."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()


def gradients(layout: Layout) -> dict[str, np.ndarray]:
    """Whole gradients of the parameters that are here; only the first process of a stage keeps them."""
    place = layout.mesh.coordinate
    keeps = all(place[axis] == 0 for axis in place if axis != "pp")
    found = {}
    for name, parameter in layout.parameters.items():
        if parameter.grad is not None:
            whole: Any = parameter.grad
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            if keeps:
                found[name] = whole.numpy().copy()
    return found


def state_bytes(step: Step) -> int:
    """Of parameters, gradients and what the optimizer keeps of them; counters of steps are left out."""
    tensors = list(step.layout.parameters.values())
    tensors += [one.grad for one in tensors if one.grad is not None]  # type: ignore[misc]
    for state in step.optimizer.state.values():
        tensors += [value for value in state.values() if value.ndim]
    return sum(local(one).nbytes for one in tensors)
