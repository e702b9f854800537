"""The machine, as far as it can be known without torch."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

PLACEMENT = "LLMTRAIN_PLACEMENT"
"""Variable in which a worker is told what it has been given, in words."""

CORES = "LLMTRAIN_CORES"
"""Variable of the cores of each worker of this machine, by local rank: `0-3;4-7`; empty: all for all."""

CONTROL_GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may use."""


def processor_name() -> str:
    """Name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranges(cores: Iterable[int]) -> str:
    """Numbers as `0-3,8`."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and runs[-1][-1] == core - 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def keep_to_own_cores(local_rank: int) -> None:
    """Bind all threads of this process, and those that they will start, to the cores that were chosen for it.

    To be called when the data are there: preparing them takes all cores.
    """
    sets = os.environ.get(CORES, "").split(";")
    if sys.platform != "linux" or local_rank >= len(sets) or not sets[local_rank]:
        return
    bounds = [part.split("-") for part in sets[local_rank].split(",")]
    cores = {core for one in bounds for core in range(int(one[0]), int(one[-1]) + 1)}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended, or the cores have been taken away
            os.sched_setaffinity(int(thread), cores)


def available_memory() -> int:
    """Bytes of memory that may still be taken: of the machine, and of the control group that we are in."""
    free = [_machine_memory()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int((CONTROL_GROUP / limit).read_text()) - int((CONTROL_GROUP / used).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return max(0, min(free))


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return total_memory()


def total_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def num_gpus() -> int:
    """NVIDIA GPUs that this process may use, as far as the driver tells without torch; else 0."""
    try:
        installed = len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])


def torchrun_processes() -> int | None:
    """Number of processes where torchrun started them, else None; our own launcher does not count."""
    variables = {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"}
    if "LLMTRAIN_PARENT" in os.environ or not variables <= os.environ.keys():
        return None
    return int(os.environ["WORLD_SIZE"])
