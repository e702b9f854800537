"""Checkpoints of several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.checkpoint import disk
from llmtrain.checkpoint.agree import gather_json, on_rank_0, together
from llmtrain.checkpoint.manifest import published
from llmtrain.checkpoint.saving import Content
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.utils.errors import DiskFullError, NoCheckpointError
from tests.helpers.processes import run_ranks, wait_until


def silent(event: str, details: dict[str, Any]) -> None:
    """No report."""


def replicated() -> dict[str, torch.Tensor]:
    """The same on every process, as under data parallelism."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"a": (64, 8), "b": (32,), "c": (), "d": (128, 2)}
    return {key: torch.randn(size, generator=generator) for key, size in sizes.items()}


def sharded(seed: int) -> dict[str, torch.Tensor]:
    """DTensors; the second is shorter than the mesh."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(seed)
    full = {"long": torch.randn(7, 3, generator=generator), "short": torch.randn(1, 5, generator=generator)}
    return {key: distribute_tensor(value, mesh, [Shard(0)]) for key, value in full.items()}


def round_trip(rank: int, directory: Path) -> list[str]:
    store = CheckpointStore(directory, keep=2, report=silent)
    path = store.save(1, replicated(), {"layout": {"dp_replicate": 2}, "lr": 0.1}, {"config.yaml": "a: 1\n"})
    assert store.find() == path
    target = {key: torch.full_like(value, -1.0) for key, value in replicated().items()}
    assert store.load(path, target)["lr"] == 0.1
    for key, value in replicated().items():
        assert torch.equal(target[key], value)
    store.mark_best(1)
    shards = sharded(1)
    path = store.save(2, {**shards, **replicated()}, {}, {})
    live = sharded(1)
    store.begin(Content(3, {**live, **replicated()}, {}, {}), best=True)
    for value in live.values():
        value.zero_()
    together(lambda: None)  # exchanges of the training go on meanwhile
    store.wait()
    assert os.readlink(directory / "best") == "step-00000003"
    for saved in (path, directory / "step-00000003"):
        blank = sharded(2)
        store.load(saved, {**blank, **target})
        for key, value in shards.items():
            assert torch.equal(blank[key].to_local(), value.to_local())  # type: ignore[attr-defined]
    return sorted(os.listdir(path))


def test_two_processes_share_the_work_and_one_can_read_it(tmp_path: Path) -> None:
    first, second = run_ranks(round_trip, 2, tmp_path, tmp_path / "checkpoints")
    assert first == second
    assert [name for name in first if name.endswith(".safetensors")] == [
        "tensors-00001.safetensors",
        "tensors-00002.safetensors",
    ]
    alone = CheckpointStore(tmp_path / "checkpoints", keep=2, report=silent)
    path = alone.find()
    assert path is not None
    assert path.name == "step-00000003"
    generator = torch.Generator().manual_seed(1)
    target = {key: torch.zeros_like(value) for key, value in replicated().items()}
    target |= {"long": torch.zeros(7, 3), "short": torch.zeros(1, 5)}
    alone.load(path, target)
    assert torch.equal(target["long"], torch.randn(7, 3, generator=generator))
    assert torch.equal(target["short"], torch.randn(1, 5, generator=generator))
    assert torch.equal(target["d"], replicated()["d"])


def one_fails(rank: int, directory: Path) -> list[str]:
    store = CheckpointStore(directory, keep=2, report=silent)
    store.save(1, replicated(), {}, {})
    original = disk.write_durably
    seen = []
    if rank == 1:

        def fail(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        disk.write_durably = fail  # type: ignore[assignment]
    with pytest.raises(DiskFullError) as caught:
        store.save(2, replicated(), {}, {})
    seen.append(str(caught.value).splitlines()[1])
    disk.write_durably = original
    if rank == 1:
        disk.write_durably = fail  # type: ignore[assignment]
    store.begin(Content(2, replicated(), {}, {}))
    wait_until(store.failed)  # though the other process could write
    with pytest.raises(DiskFullError):
        store.wait()
    disk.write_durably = original
    with pytest.raises((TypeError, RuntimeError), match="not a tensor"):
        store.save(3, {"a": 1.0} if rank == 1 else {"a": torch.ones(1)}, {}, {})  # type: ignore[dict-item]
    path = store.save(4, replicated(), {}, {})  # and they are still in step
    store.find()
    seen += [item.name for item in published(directory)]
    together(lambda: None)
    if rank == 0:
        for item in published(directory):
            (item / "state.json").write_text("[]")
    with pytest.raises(NoCheckpointError):
        store.find()
    assert path.name == "step-00000004"
    return seen


def test_when_one_process_fails_all_do_and_nothing_hangs(tmp_path: Path) -> None:
    first, second = run_ranks(one_fails, 2, tmp_path, tmp_path / "checkpoints")
    assert first == second
    assert first[1:] == ["step-00000004", "step-00000001"]
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".tmp")]


def exchanges(rank: int) -> None:
    assert gather_json({"rank": rank, "text": "ü" * rank}) == [
        {"rank": number, "text": "ü" * number} for number in range(3)
    ]
    assert on_rank_0(lambda: rank) == 0

    def fail() -> None:
        if rank == 2:
            raise NoCheckpointError("what", "where", "fix")

    with pytest.raises(NoCheckpointError, match="do: fix"):
        together(fail)


def test_exchanges(tmp_path: Path) -> None:
    run_ranks(exchanges, 3, tmp_path)
