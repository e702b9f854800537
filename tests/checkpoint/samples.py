"""What the tests of checkpoints save, and how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.store import CheckpointStore

STATE = {
    "step": 7,
    "lr": 0.1 + 0.2,
    "tiny": 5e-324,
    "best": float("inf"),
    "cursor": 2**60 + 1,
    "layout": {"dp_replicate": 1},
    "list": [None, True, "ü", 1e22],
}


class Events(list[tuple[str, dict[str, Any]]]):
    """Collects what a store reports."""

    def __call__(self, event: str, details: dict[str, Any]) -> None:
        self.append((event, details))


def make_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of every kind that a run saves."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(8, 6, generator=generator)
    return {
        "model.embed.weight": torch.randn(33, 7, generator=generator),
        "model.bf16": torch.randn(5, 3, generator=generator).bfloat16(),
        "model.transposed": torch.randn(4, 9, generator=generator).T,
        "model.slice": base[2:4],
        "model.empty": torch.zeros(0, 4),
        "optim.step": torch.tensor(12.0),
        "optim.count": torch.tensor(2**53 + 1),
        "optim.ids": torch.randint(-(2**62), 2**62, (10,), generator=generator),
        "optim.nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "optim.flags": torch.tensor([True, False, True]),
        "optim.half": torch.randn(3, generator=generator).half(),
    }


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def make_store(directory: Path, keep: int = 10) -> CheckpointStore:
    return CheckpointStore(directory / "checkpoints", keep=keep, report=Events())


def save(store: CheckpointStore, step: int, **arguments: Any) -> Path:
    files = {"config.yaml": f"verb: pretrain\nstep: {step}\n", "tokenizer.json": "{}"}
    return store.save(step, make_tensors(step), {**STATE, "step": step}, files, **arguments)


def names(store: CheckpointStore) -> list[str]:
    return sorted(os.listdir(store.directory)) if store.directory.exists() else []
