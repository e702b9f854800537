"""The process group: starting it, and the few small exchanges that the engine needs.

Control messages (counts, stop requests, numbers to log) always travel as CPU tensors over gloo, on GPUs
too, so that they never make the host wait for the device.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from llmtrain.utils import meeting

TIMEOUT = datetime.timedelta(minutes=30)
"""A peer that is silent for so long is taken for lost."""


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def start() -> None:
    """Join the other processes; does nothing for a single one.

    Under our launcher they meet in a file, and gloo is bound to the loopback interface: nothing can be
    reached from outside. Under torchrun they meet at its address, within `$LLMTRAIN_JOIN_TIMEOUT` seconds.

    Raises:
        DataError: the nodes cannot reach each other; says why.
        ConfigError: LLMTRAIN_JOIN_TIMEOUT is no number.
    """
    if world_size() == 1:
        return
    if local_world_size() == world_size():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    gpu = torch.cuda.is_available()
    meeting.check_interfaces(rank(), nccl=gpu)
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    if ours():
        store: dist.Store = dist.FileStore(os.environ["LLMTRAIN_STORE"], world_size())
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=TIMEOUT)
        return
    seconds = meeting.join_timeout()
    store = meeting.meet(rank(), world_size(), seconds)
    patience = datetime.timedelta(seconds=seconds)
    try:
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=patience)
    except RuntimeError as error:
        raise meeting.not_connected(rank(), error) from error
    store.set_timeout(TIMEOUT)
    distributed_c10d._set_pg_timeout(TIMEOUT)


def ours() -> bool:
    """Whether our launcher started this process; else it was torchrun, or nobody."""
    return "LLMTRAIN_STORE" in os.environ


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over all processes, in fp64."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def companion() -> dist.ProcessGroup | None:
    """A second group of all processes over gloo, for exchanges of a thread beside the main one; None for a
    single process. Collective."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT) if dist.is_initialized() else None


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Stack a CPU tensor of one shape from all processes: (...) -> (world, ...).

    Sums made from it in the order of ranks have the same bits whatever the shape; those of an
    all-reduce may depend upon where an element lies.
    """
    if not dist.is_initialized():
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor, group=group)
    return torch.stack(parts)


def broadcast_json(value: Any, source: int = 0) -> Any:
    """The value (anything that JSON can hold) of one rank for every process."""
    if not dist.is_initialized():
        return value
    text = json.dumps(value).encode() if rank() == source else b""
    size = torch.tensor([len(text)])
    dist.broadcast(size, source)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if rank() == source:
        buffer = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    dist.broadcast(buffer, source)
    return json.loads(buffer.numpy().tobytes())
