"""The device of a worker: which it is, its number formats, its memory, its speed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import time
from collections.abc import Iterator

import torch

from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError, UserError
from llmtrain.utils.io import cache_directory, read_json, write_json
from llmtrain.utils.machine import processor_name

GPU_PEAK_FLOPS: dict[str, dict[str, float]] = {
    "H200": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "fp32": 91.6e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "fp32": 30.3e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12, "fp32": 35e12},
    "A10": {"bf16": 125e12, "fp16": 125e12, "fp32": 31.2e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "fp32": 35.6e12},
}
"""Dense peak of matrix products by the makers' data sheets; the first name that fits is taken."""


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """If wanted, let torch choose operations that give the same bits each time, or none at all.

    Has to come before the first product on a GPU: cuBLAS reads its variable then.

    Raises:
        ConfigError: inside, an operation has no such form.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise ConfigError(
            f"the operation {found[1]} has no deterministic form on this device",
            "run.deterministic=true",
            "give run.deterministic=false, or a model (or a device) that does without it",
        ) from error
    finally:
        torch.use_deterministic_algorithms(False)


def pick_device(kind: str) -> torch.device:
    """The device of this process.

    Args:
        kind: cpu, cuda, mps, or auto.

    Raises:
        UserError: it is not there.
    """
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if kind == "mps" and dist.world_size() > 1:
            kind = "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise UserError(
            f"device {kind} is not available", "launch.device", "use launch.device=auto, or check the driver"
        )
    if kind == "mps" and dist.world_size() > 1:
        raise UserError(
            "mps works with one process only",
            "launch.device",
            "use launch.num_processes=1, or launch.device=cpu",
        )
    if kind == "cuda":
        wanted, there = dist.local_world_size(), torch.cuda.device_count()
        if wanted > there:
            raise UserError(
                f"{wanted} processes want a GPU each, and there are {there}",
                "launch.num_processes",
                f"use launch.num_processes={there}, or launch.device=cpu",
            )
        torch.cuda.set_device(dist.local_rank())
        return torch.device("cuda", dist.local_rank())
    return torch.device(kind)


def default_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it fast, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the device on CUDA, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Floating-point operations per second that this process's device can do in matrix products.

    On a GPU from a table of data sheets. On a CPU it is measured with a short product, once per machine,
    number of threads and format, and kept in the cache.

    Returns:
        None where it is not known.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        fitting = (peaks for key, peaks in GPU_PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name))
        return next(fitting, {}).get(precision)
    if device.type != "cpu":
        return None
    path = cache_directory() / "peak_flops.json"
    key = f"{processor_name()} / {torch.get_num_threads()} threads / {precision}"
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = measure_matrix_product(precision)
        with contextlib.suppress(OSError, UserError):  # a cache that cannot be written is no reason to stop
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return known[key]


def measure_matrix_product(precision: str, size: int = 2048, seconds: float = 0.2) -> float:
    """Best rate of a square product on the CPU, in operations per second."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    fastest = float("inf")
    end = time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end or fastest == float("inf"):
            start = time.perf_counter()
            a @ b
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
