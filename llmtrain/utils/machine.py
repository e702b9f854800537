"""The machine, as far as it can be known without torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path


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
