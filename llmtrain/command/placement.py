"""What the workers of a machine are given, settled before they start: threads, cores, an allocator."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from llmtrain.command.allocator import Choice, choose
from llmtrain.schema.fields import Device, LaunchConfig
from llmtrain.utils.machine import num_cores, num_gpus, ranges

TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Placement:
    """What each worker gets.

    Attributes:
        processes: workers on this machine.
        threads: of each.
        cores: of each, as the kernel numbers them; empty where they are not bound.
        allocator: of all.
    """

    processes: int
    threads: int
    cores: list[list[int]]
    allocator: Choice

    @property
    def line(self) -> str:
        """In words."""
        each = f"{self.processes} processes of" if self.processes > 1 else "1 process,"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        bound = f", bound to cores {' | '.join(map(ranges, self.cores))}" if self.cores else ""
        return f"{each} {threads}{bound}; allocator: {self.allocator.name}"


def place(config: LaunchConfig, processes: int) -> Placement:
    """Settle what the workers of this machine get."""
    on_gpu = config.device is not Device.cpu and num_gpus() > 0
    several = processes > 1 and config.bind and not on_gpu
    return Placement(
        processes,
        num_threads(config.threads, processes),
        core_sets(processes) if several else [],
        choose(config.allocator, on_gpu),
    )


def num_threads(wanted: int | None, processes: int) -> int:
    """Threads of each worker: as asked for, else by OMP_NUM_THREADS, else its share of the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return wanted or (int(given) if given.isdecimal() and int(given) else max(1, num_cores() // processes))


def core_sets(processes: int) -> list[list[int]]:
    """A set of cores for each worker, such that neighbours share what they have in common.

    Returns:
        nothing where there are fewer cores than workers, or where they cannot be bound.
    """
    if sys.platform != "linux" or num_cores() < processes:
        return []
    cores = sorted(os.sched_getaffinity(0), key=_position)
    bounds = [len(cores) * number // processes for number in range(processes + 1)]
    return [sorted(cores[start:end]) for start, end in itertools.pairwise(bounds)]


def _position(core: int) -> tuple[int, int, int]:
    """Socket and physical core; what runs on one physical core stands together."""
    parts = []
    for name in ("physical_package_id", "core_id"):
        try:
            parts.append(int((TOPOLOGY / f"cpu{core}" / "topology" / name).read_text()))
        except (OSError, ValueError):
            parts.append(0)
    return parts[0], parts[1], core
