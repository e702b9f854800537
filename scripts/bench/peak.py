"""How many operations a second products of large matrices reach here: the machine's limit.

python scripts/bench/peak.py
"""

import json
import time

import torch


def peak_flops(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Operations per second of the best of several products."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        start = time.perf_counter()
        while time.perf_counter() - start < seconds / 3:
            before = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2 * size**3 / (time.perf_counter() - before))
    return best


if __name__ == "__main__":
    found = {"fp32": peak_flops(torch.float32), "bf16": peak_flops(torch.bfloat16)}
    print(json.dumps({**found, "threads": torch.get_num_threads(), "torch": torch.__version__}))
