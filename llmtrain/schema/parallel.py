"""Degrees of parallelism, and how a batch and the blocks of a model are shared out by them. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum

from llmtrain.schema.fields import Device, LaunchConfig, TrainConfig, require
from llmtrain.utils.errors import Problem
from llmtrain.utils.machine import num_gpus, torchrun_processes


class PipelineSchedule(str, Enum):
    """Order of forward and backward passes in a pipeline."""

    gpipe = "gpipe"
    one_forward_one_backward = "1f1b"
    interleaved = "interleaved_1f1b"
    zero_bubble = "interleaved_zero_bubble"

    @property
    def interleaves(self) -> bool:
        """Whether each process has several stages that do not follow each other."""
        return self in (PipelineSchedule.interleaved, PipelineSchedule.zero_bubble)


class Reshard(str, Enum):
    """Whether sharded weights are given up between forward and backward pass."""

    auto = "auto"
    always = "always"
    never = "never"


AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Axes of the device mesh, from the outermost to the one whose processes exchange most."""


@dataclass(frozen=True)
class Degrees:
    """How many processes stand along each axis of the mesh; all at least 1."""

    pp: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1

    @property
    def world(self) -> int:
        """Number of processes."""
        return math.prod(asdict(self).values())

    @property
    def data(self) -> int:
        """Number of different shares that a global batch is cut into."""
        return self.dp_replicate * self.dp_shard

    @property
    def replicates_only(self) -> bool:
        """Whether every process holds the whole model and sees whole rows."""
        return self.pp == self.dp_shard == self.cp == self.tp == 1

    def __str__(self) -> str:
        """Only what is not 1, as settings: `dp_shard=2 tp=2`; `single` for one process."""
        return " ".join(f"{axis}={size}" for axis, size in asdict(self).items() if size > 1) or "single"


@dataclass
class ParallelConfig:
    """Degrees of parallelism; their product is the number of processes. At most one of them is -1, the rest
    that the others leave. The choices of `parallel` are presets of these numbers and mix freely."""

    dp_replicate: int | None = None
    """Copies of the model; each takes its share of every batch. Default: what the others leave over."""

    dp_shard: int = 1
    """Processes that share the weights, gradients and optimizer state of one copy (FSDP2, ZeRO-3) and take
    their share of every batch."""

    tp: int = 1
    """Processes that share each matrix of a block (tensor parallel) and, between the matrices, the tokens of
    each row (sequence parallel)."""

    pp: int = 1
    """Processes that share the layers, one after another (pipeline parallel)."""

    cp: int = 1
    """Processes that share the tokens of each row (context parallel, for long rows); inside attention each
    sees whole rows of its share of the heads (Jacobs et al. 2023, "DeepSpeed Ulysses")."""

    schedule: PipelineSchedule = PipelineSchedule.one_forward_one_backward
    """Order of the passes in a pipeline: gpipe, 1f1b (less memory), interleaved_1f1b and
    interleaved_zero_bubble (less idle time; `stages_per_process` stages each)."""

    stages_per_process: int = 2
    """Stages of each process where the schedule interleaves; it has one in the others."""

    cuts: list[int] | None = None
    """Numbers of the blocks that the second and later stages of a pipeline start with. Default: as balanced
    as it goes, the head counted by its operations."""

    reshard: Reshard = Reshard.auto
    """Whether a block's gathered weights are given up after its forward pass and gathered again for the
    backward pass (always: least memory) or kept (never: less communication). auto keeps them in a pipeline
    only."""

    def __post_init__(self) -> None:
        for axis in AXES:
            degree = getattr(self, axis)
            require(degree is None or degree == -1 or degree > 0, axis, "must be -1 or at least 1")
        require(self.stages_per_process > 0, "stages_per_process", "must be greater than 0")
        cuts = self.cuts or []
        require(sorted(set(cuts)) == cuts and min(cuts, default=1) > 0, "cuts", "must grow, from 1 on")

    def fixed(self) -> int:
        """Product of the degrees that are given: the fewest processes that this layout takes."""
        return math.prod(degree for axis in AXES if (degree := getattr(self, axis)) not in (None, -1))

    def num_stages(self, pp: int) -> int:
        """Stages of a pipeline of `pp` processes."""
        return pp * (self.stages_per_process if self.schedule.interleaves and pp > 1 else 1)


def count_processes(launch: LaunchConfig, parallel: ParallelConfig) -> int:
    """Processes of a training that is started here: what torchrun started, else as configured, else one per
    GPU, else as many as the given degrees need.

    GPUs are counted without torch, which would take longer than the rest of the command.
    """
    gpus = num_gpus() if launch.device in (Device.auto, Device.cuda) else 0
    return torchrun_processes() or launch.num_processes or gpus or parallel.fixed()


def resolve_degrees(config: ParallelConfig, world: int) -> tuple[Degrees, list[Problem]]:
    """The degrees for a number of processes.

    Returns:
        the degrees (where there are problems: 1 for those that are not given), and what is wrong with them.
    """
    given = {axis: getattr(config, axis) for axis in AXES}
    open_axes = [axis for axis, degree in given.items() if degree == -1]
    if given["dp_replicate"] is None:
        open_axes = open_axes or ["dp_replicate"]
    sizes = {axis: degree if (degree or 0) > 0 else 1 for axis, degree in given.items()}
    if len(open_axes) > 1:
        keys = [f"parallel.{axis}" for axis in open_axes]
        fix = f"give a number for all but one of them, for example {'=1 '.join(keys[1:])}=1"
        what = (
            f"{' and '.join(keys)} are {'both' if len(keys) == 2 else 'all'} -1: only one can take the rest"
        )
        return Degrees(**sizes), [Problem(what, keys[0], fix)]
    fixed = config.fixed()
    if world % fixed or (not open_axes and fixed != world):
        told = " x ".join(f"parallel.{axis}={size}" for axis, size in sizes.items() if size > 1)
        near = {max(1, world // fixed) * fixed, -(-world // fixed) * fixed} if open_axes else {fixed}
        counts = " or ".join(map(str, sorted(near)))
        needed = f"{'a multiple of ' if open_axes else ''}{fixed} process{'es' if fixed > 1 else ''}"
        what = f"{told or 'parallel.dp_replicate=1'} needs {needed}, not {world}"
        where = next(
            (f"parallel.{axis}" for axis, size in sizes.items() if size > 1), "parallel.dp_replicate"
        )
        return Degrees(**sizes), [Problem(what, where, f"start {counts} processes, or give other degrees")]
    for axis in open_axes:
        sizes[axis] = world // fixed
    return Degrees(**sizes), []


def microbatch_rows(train: TrainConfig, parallel: ParallelConfig, degrees: Degrees) -> int | None:
    """Rows that a process takes through the model at once, or None where the batch cannot be cut so.

    A pipeline idles for pp - 1 of (microbatches + pp - 1) turns (Huang et al. 2019, "GPipe"), so the share of
    a process is cut into 2 x pp microbatches if it can be: then it works two thirds of the time.
    """
    pp, (share, rest) = degrees.pp, divmod(train.batch_size, degrees.data)
    step = pp if parallel.schedule.interleaves else 1
    if train.micro_batch_size is not None and not rest:
        number, rest = divmod(share, train.micro_batch_size)
        return None if rest or number < pp or number % step else train.micro_batch_size
    if rest or pp == 1:
        return None if rest else share
    numbers = [number for number in range(pp, share + 1, step) if share % number == 0]
    number = next((number for number in numbers if number >= 2 * pp), max(numbers, default=0))
    return share // number if number else None


def stage_blocks(
    num_blocks: int, num_stages: int, cuts: Sequence[int] | None = None, head: float = 0.0
) -> list[range]:
    """Numbers of the blocks of each stage of a pipeline.

    Args:
        num_blocks: of the model; at least as many as stages.
        num_stages: of the pipeline.
        cuts: first blocks of the second and later stages; None balances them: the last stage gets as many
            blocks as make the slowest stage fastest, the others are alike. What does not divide goes to
            the later ones, which hold the activations of fewer microbatches.
        head: what the head costs, in blocks; it is in the last stage.
    """
    if cuts is None and num_stages > 1:
        before = num_stages - 1
        last = min(
            range(1, num_blocks - before + 1),
            key=lambda last: (max(-(-(num_blocks - last) // before), last + head), -last),
        )
        cuts = [number * (num_blocks - last) // before for number in range(1, num_stages)]
    borders = [0, *(cuts or []), num_blocks]
    return [range(*pair) for pair in itertools.pairwise(borders)]


def layout_warnings(parallel: ParallelConfig, world: int) -> list[str]:
    """Settings of a layout that have no effect with this number of processes, one sentence each."""
    degrees, problems = resolve_degrees(parallel, world)
    if problems:
        return []
    warnings = [
        f"parallel.{axis}=-1 gets 1 of {world} processes: give launch.num_processes=N for more"
        for axis in AXES
        if axis != "dp_replicate" and getattr(parallel, axis) == -1 and getattr(degrees, axis) == 1
    ]
    usual, alone = ParallelConfig(), "there is no pipeline (parallel.pp is 1)"
    without = {"cuts": alone, "schedule": alone, "stages_per_process": alone} if degrees.pp == 1 else {}
    if degrees.pp > 1 and not parallel.schedule.interleaves:
        without["stages_per_process"] = f"parallel.schedule={parallel.schedule.value} has one each"
    if degrees.dp_shard * degrees.cp == 1:
        without["reshard"] = "no weights are shared out (parallel.dp_shard and cp are 1)"
    for key, why in without.items():
        value = getattr(parallel, key)
        if value != getattr(usual, key):
            text = value.value if isinstance(value, Enum) else str(value).replace(" ", "")
            warnings.append(f"parallel.{key}={text} is ignored: {why}")
    return warnings
