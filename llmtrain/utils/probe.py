"""What torch says of a machine, and whether two processes of it reach each other.

`python -m llmtrain.utils.probe STORE RANK`: started twice by `llmtrain doctor`, with a file to meet in. The
first one prints what was found, as JSON.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from llmtrain.utils.device import default_precision, measure_matrix_product

MEETING_SECONDS = 20
"""A process that is not there by then is not reached."""

EXCHANGED = 4 << 20
"""Bytes of the tensor that is summed over both."""

PRODUCT_SECONDS = 0.5


def exchange(store: str, rank: int) -> dict[str, Any]:
    """Sum a tensor over two processes: how fast it was, or why it failed."""
    try:
        patience = datetime.timedelta(seconds=MEETING_SECONDS)
        meeting = dist.FileStore(store, 2)
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=2, timeout=patience)
        numbers = torch.full((EXCHANGED // 4,), float(rank + 1))
        dist.all_reduce(numbers.clone())  # connects
        start = time.perf_counter()
        dist.all_reduce(numbers)
        seconds = time.perf_counter() - start
        dist.destroy_process_group()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    if not torch.equal(numbers, torch.full_like(numbers, 3.0)):
        return {"error": "the sum of two processes is wrong"}
    return {"bytes_per_second": EXCHANGED / seconds}


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs, as torch sees them."""
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return found


def facts() -> dict[str, Any]:
    """Versions, instruction sets, devices and the speed of matrix products."""
    cpu = torch.device("cpu")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus(),
        "mps": torch.backends.mps.is_available(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "onednn": torch.backends.mkldnn.is_available(),
        "threads": torch.get_num_threads(),
        "precision": default_precision(torch.device("cuda", 0) if torch.cuda.is_available() else cpu),
        "flops": {name: measure_matrix_product(name, 2048, PRODUCT_SECONDS) for name in ("fp32", "bf16")},
    }


def main(arguments: list[str]) -> None:
    """Probe; the first process prints."""
    store, rank = arguments[0], int(arguments[1])
    exchanged = exchange(store, rank)
    if rank == 0:
        print(json.dumps({"torch": facts(), "exchange": exchanged}))


if __name__ == "__main__":
    main(sys.argv[1:])
