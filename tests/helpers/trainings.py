"""Whole trainings in the processes of a test: started in one layout, gone on with in another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from llmtrain.checkpoint.read import resolve
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.compose.compose import compose
from llmtrain.data.loader import Loader
from llmtrain.engine.engine import Engine, Hook
from llmtrain.engine.hooks import CheckpointHook
from llmtrain.recipe.pretrain import text_work
from llmtrain.recipe.training import set_up
from llmtrain.schema.roots import PretrainConfig
from llmtrain.utils.errors import ExitCode
from tests.helpers.recipes import context

LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "single": (1, ()),
    "ddp2": (2, ()),
    "fsdp4": (4, ("parallel.dp_shard=4",)),
    "dp2-tp2": (4, ("parallel.tp=2",)),
    "fsdp2-pp2": (4, ("parallel.dp_shard=2", "parallel.pp=2")),
    "fsdp2-tp2": (4, ("parallel.dp_shard=2", "parallel.tp=2")),
    "fsdp2-cp2": (4, ("parallel.dp_shard=2", "parallel.cp=2")),
    "tp2-pp2-interleaved": (4, ("parallel.tp=2", "parallel.pp=2", "parallel.schedule=interleaved_1f1b")),
}
"""Number of processes, and what is said beside it."""


@dataclass
class Job:
    """A training that processes take up.

    Attributes:
        config: of it.
        run: run directory; where it has checkpoints, the training goes on from the newest.
        step: to train to.
    """

    config: PretrainConfig
    run: Path
    step: int


@dataclass
class Visit:
    """A training that processes take up only to look at it, in a layout of its own.

    Attributes:
        config: of all that follows.
        sources: run directories; from the newest checkpoint of each the training goes on.
        copies: run directories; what was loaded is saved there anew.
    """

    config: PretrainConfig
    sources: list[Path]
    copies: list[Path] = field(default_factory=list)


@dataclass
class Held:
    """What a process had in memory.

    Attributes:
        digests: of each whole tensor that is to be saved.
        rows: token ids of the next microbatches, by the number of the row.
    """

    digests: dict[str, str]
    rows: dict[int, list[int]] = field(default_factory=dict)


class StopAfter(Hook):
    """Asks for a stop after a step, as SIGTERM would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, engine: Engine) -> None:
        if engine.state.step == self.step < engine.total_steps:
            engine.stop.exit_code = ExitCode.TERMINATED


def configure(layout: str, *words: str) -> PretrainConfig:
    """The config of a pretraining in a layout."""
    world, parallel = LAYOUTS[layout]
    return composed_config(*words, *parallel, f"launch.num_processes={world}")


def composed_config(*words: str) -> PretrainConfig:
    """What `llmtrain pretrain` makes of some words."""
    (composed,) = compose("pretrain", words)
    assert isinstance(composed.config, PretrainConfig)
    return composed.config


def prepare(config: PretrainConfig, run: Path) -> Engine:
    """The engine of a run directory: of a new training, or at its newest checkpoint."""
    return set_up(config, context(run), text_work)[0]


def train(rank: int, jobs: list[Job]) -> list[Held]:
    """Train, save and tell what was saved. Saving must not gather what is shared out."""
    found = []
    for job in jobs:
        engine = prepare(job.config, job.run)
        engine.hooks.insert(0, StopAfter(job.step))
        with mock.patch.object(CheckpointStore, "begin", begin_without_gathering):
            engine.fit()
        assert engine.state.step == job.step
        found.append(Held(digests(saving(engine).tensors), next_rows(engine, engine.state.row)))
        engine.close()
    return found


original_begin = CheckpointStore.begin


def begin_without_gathering(self: CheckpointStore, *arguments: Any, **options: Any) -> None:
    """As it is, but a tensor must stay as it is placed."""
    from torch.distributed.tensor import DTensor

    with mock.patch.object(DTensor, "redistribute", side_effect=AssertionError("a tensor was gathered")):
        original_begin(self, *arguments, **options)


def load(rank: int, visits: list[Visit]) -> list[list[Held]]:
    """Go on from checkpoints, up to the first step; the first time in each visit as a training does, and
    then into the same tensors."""
    found = []
    for visit in visits:
        engine = prepare(visit.config, visit.sources[0])
        hook, row = saving(engine), engine.state.row
        held = []
        for number, source in enumerate(visit.sources):
            if number:
                for tensor in hook.tensors.values():
                    tensor.fill_(torch.nan)
                row = store_at(source).load(resolve(source), hook.tensors)["train"]["row"]
            held.append(Held(digests(hook.tensors), next_rows(engine, row)))
            if number < len(visit.copies):
                hook.store, hook.saved_step = store_at(visit.copies[number]), -1
                hook.save(engine)
        engine.close()
        found.append(held)
    return found


def saving(engine: Engine) -> CheckpointHook:
    """What writes the checkpoints of an engine."""
    (hook,) = (hook for hook in engine.hooks if isinstance(hook, CheckpointHook))
    return hook


def store_at(run: Path) -> CheckpointStore:
    """The checkpoints of a run."""
    return CheckpointStore(run / "checkpoints", keep=1, report=lambda event, details: None)


def next_rows(engine: Engine, row: int) -> dict[int, list[int]]:
    """Token ids of the rows that this process would take next, if the training stood at a row."""
    own, mesh = engine.loader, engine.step.layout.mesh
    batch, micro = own._batch_size, own._micro
    loader = Loader(
        own._rows,
        batch_size=batch,
        micro_batch_size=micro,
        rank=mesh.data_rank,
        world=mesh.degrees.data,
        start_row=row,
    )
    ids = [batch.ids.tolist() for batch in loader.next()]
    loader.close()
    starts = range(row + mesh.data_rank * micro, row + batch, mesh.degrees.data * micro)
    return {start + i: ids[j][i] for j, start in enumerate(starts) for i in range(micro)}


def digests(tensors: dict[str, Any]) -> dict[str, str]:
    """Of each tensor, put together from the processes that share it. Collective."""
    return {
        key: digest(one.full_tensor() if hasattr(one, "full_tensor") else one) for key, one in tensors.items()
    }


def digest(tensor: Tensor) -> str:
    """SHA-256 of shape, number format and bits."""
    told = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
    bits = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(told + bits.tobytes()).hexdigest()
