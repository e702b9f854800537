"""Saves checkpoints without end until it is killed: `python saver.py DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from llmtrain.checkpoint.store import CheckpointStore


def expected(step: int) -> torch.Tensor:
    """What the checkpoint of a step holds: 4 MB."""
    return torch.arange(1_000_000, dtype=torch.float32) + step


if __name__ == "__main__":
    torch.set_num_threads(1)
    store = CheckpointStore(Path(sys.argv[1]), keep=2, report=lambda event, details: None)
    store.find()
    print("ready", flush=True)
    for step in range(1, 100_000):
        store.save(step, {"w": expected(step)}, {"step": step}, {"config.yaml": f"step: {step}\n"})
        if step % 3 == 0:
            store.mark_best(step)
