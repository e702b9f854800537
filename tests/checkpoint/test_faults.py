"""No room, and `kill -9` at any moment."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from llmtrain.checkpoint import disk, storage
from llmtrain.checkpoint.manifest import FileEntry, parse_step, step_name
from llmtrain.checkpoint.saving import Content
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.utils.errors import DiskFullError, ExitCode
from llmtrain.utils.io import file_sha256
from tests.checkpoint.samples import Events, make_store, names, save
from tests.helpers.processes import start_rank, wait_until

# --- no room --------------------------------------------------------------------------------------------


def test_too_little_space_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path)
    save(store, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(disk, "write_durably", lambda *args: pytest.fail("wrote"))
    with pytest.raises(DiskFullError, match="1,000 are free") as caught:
        save(store, 2)
    assert caught.value.exit_code == ExitCode.DISK == 6
    assert str(store.directory) in str(caught.value)
    assert names(store) == ["step-00000001"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("unexpected pos 704 vs 598"),
        OSError(122, "quota"),
    ],
)
def test_a_disk_that_fills_up_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(disk, "write_durably", fail)
    store = make_store(tmp_path)
    with pytest.raises(DiskFullError, match=r"needs .* bytes"):
        save(store, 2)
    assert names(store) == []


def test_other_errors_keep_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "write_durably", fail)
    with pytest.raises(PermissionError, match="Permission denied"):
        save(make_store(tmp_path), 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("checked", [True, False], ids=["checked first", "found while writing"])
def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch, checked: bool) -> None:
    if not checked:
        monkeypatch.setattr(storage, "check_space", lambda path, needed: None)
    store = make_store(small_disk)
    first = store.save(1, {"w": torch.ones(100_000)}, {}, {})
    with pytest.raises(DiskFullError) as caught:
        store.save(2, {"w": torch.ones(500_000)}, {}, {})
    assert "2,100,000 bytes" in str(caught.value)
    assert names(store) == ["step-00000001"]
    assert store.find() == first
    with pytest.raises(DiskFullError):
        store.save(3, {"w": torch.ones(1)}, {}, {"big.txt": "x" * 3_000_000})
    assert names(store) == ["step-00000001"]


# --- kill -9 --------------------------------------------------------------------------------------------


def content(step: int) -> Tensor:
    """What the endless checkpoint of a step holds: 4 MB."""
    return torch.arange(1_000_000, dtype=torch.float32) + step


def save_without_end(rank: int, directory: Path) -> None:
    """Saves until it is killed, two times out of three while it changes the tensor of the training."""
    store = CheckpointStore(directory, keep=2, report=Events())
    found = store.find()
    first = 1 if found is None else (parse_step(found.name) or 0) + 1
    (directory.parent / "ready").touch()
    for step in range(first, 1_000_000):
        weight = content(step)
        holds = Content(step, {"w": weight}, {"step": step}, {"config.yaml": f"step: {step}\n"})
        store.begin(holds, best=step % 3 == 0, background=step % 3 > 0)
        weight.zero_()


def test_kill_9_in_mid_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """One process after the other goes on from what the last one left, and is killed at a random moment."""
    chance = random.Random(1)
    last, half_written = 0, 0
    for _ in range(20):
        (tmp_path / "ready").unlink(missing_ok=True)
        child = start_rank(save_without_end, tmp_path / "checkpoints")
        wait_until((tmp_path / "ready").exists)
        time.sleep(0.01 + chance.random() * 0.15)
        child.kill()
        child.join()
        events = Events()
        store = CheckpointStore(tmp_path / "checkpoints", keep=2, report=events)
        half_written += any(name.startswith(".tmp-step") for name in names(store))
        found = store.find()
        assert events == [], "a half-written checkpoint had been published"
        assert all(not name.startswith(".tmp-") for name in names(store))
        if found is None:
            assert last == 0
            continue
        target = {"w": torch.zeros(1_000_000)}
        state = store.load(found, target)
        assert found.name == step_name(state["step"])
        assert state["step"] >= last, "a published checkpoint was lost"
        assert torch.equal(target["w"], content(state["step"]))
        last = state["step"]
    assert last > 0
    assert half_written > 0, "no kill came in mid-save: the test tests nothing"


def test_tensors_are_written_as_the_library_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All formats, aligned; also scalars, nothing, and what is not dense."""
    numbers = torch.arange(-3, 9).reshape(3, 4)
    tensors = {f"of {dtype}": numbers.to(dtype) for dtype in disk.DTYPE_NAMES}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "turned": numbers.float().T}
    monkeypatch.setattr(disk, "PIECE_BYTES", 64)
    entry = disk.write_tensors(tmp_path / "numbers.safetensors", tensors, {"format": "pt"})
    path = tmp_path / "numbers.safetensors"
    assert entry == FileEntry(path.stat().st_size, file_sha256(path))
    read = load_file(tmp_path / "numbers.safetensors")
    assert read.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert read[name].dtype == expected.dtype
        assert torch.equal(read[name], expected)
    with safe_open(tmp_path / "numbers.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
