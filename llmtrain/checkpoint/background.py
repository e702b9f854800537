"""Writing a checkpoint beside the training: memory that it is copied to, and the thread that writes.

A thread is enough: copying, hashing and writing large blocks all let other threads of Python run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from llmtrain.utils import dist
from llmtrain.utils.machine import available_memory

NICENESS = 5
"""Of the writing thread: it takes the gaps that the training leaves, and a quarter of a core where there are
none."""

SPARE_MEMORY = 256 << 20
"""Bytes that stay free besides the copies."""


class Buffers:
    """Memory of the host that tensors are copied to; it is kept for the next copy."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def copy(self, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The same numbers in tensors of their own, dense and on the host.

        Returns:
            None where the memory is too short for it.
        """
        new = {name: one for name, one in tensors.items() if not self._fits(name, one)}
        needed = sum(one.numel() * one.itemsize for one in new.values())
        # The processes of one machine look at the same time, before any has taken its part.
        if needed and available_memory() < needed * dist.local_world_size() + SPARE_MEMORY:
            return None
        for name, one in new.items():
            # In pinned memory a GPU writes by itself, while the host asks for the next copy.
            self._held[name] = torch.empty(one.shape, dtype=one.dtype, pin_memory=one.is_cuda)
        for name, one in tensors.items():
            self._held[name].copy_(one, non_blocking=True)
        if any(one.is_cuda for one in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._held[name] for name in tensors}

    def _fits(self, name: str, tensor: Tensor) -> bool:
        held = self._held.get(name)
        return held is not None and held.shape == tensor.shape and held.dtype == tensor.dtype


class Beside:
    """Runs one job at a time in a thread of low priority; its error is raised in whom waits for it.

    Args:
        group: for the exchanges of the jobs: those of the training may not be mixed with them.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group
        self._pool = ThreadPoolExecutor(1, "checkpoint", initializer=lower_priority)
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; the one before must have been waited for."""
        assert self._job is None, "one job at a time"
        self._job = self._pool.submit(job)

    def failed(self) -> bool:
        """Whether the job has ended with an error; does not wait."""
        return self._job is not None and self._job.done() and self._job.exception() is not None

    def wait(self) -> None:
        """Wait for the job, if there is one.

        Raises:
            BaseException: what the job has raised, once.
        """
        job, self._job = self._job, None
        if job is not None:
            job.result()


def lower_priority() -> None:
    """Let this thread, and those that it starts, give way to the others of this process (Linux only)."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
