"""Saving while the training goes on."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.checkpoint import background, disk
from llmtrain.checkpoint.background import Beside, Buffers
from llmtrain.checkpoint.manifest import FileEntry, published
from llmtrain.checkpoint.saving import Content
from llmtrain.utils import machine
from llmtrain.utils.errors import DiskFullError
from tests.checkpoint.samples import STATE, bits, make_store, make_tensors, names


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until it is set."""
    opened, original = threading.Event(), disk.write_durably

    def write_later(*arguments: Any) -> FileEntry:
        assert opened.wait(30)
        return original(*arguments)

    monkeypatch.setattr(disk, "write_durably", write_later)
    return opened


def content(step: int, tensors: dict[str, Tensor] | None = None) -> Content:
    return Content(step, tensors or make_tensors(step), {**STATE, "step": step}, {"config.yaml": f"{step}\n"})


def test_what_is_saved_is_of_the_moment_of_the_copy(tmp_path: Path, gate: threading.Event) -> None:
    store = make_store(tmp_path)
    tensors = make_tensors(7)
    store.begin(content(7, tensors), best=True)
    for tensor in tensors.values():  # the training goes on
        tensor.zero_()
    assert published(store.directory) == []
    assert not store.failed()
    assert store.take_saved() is None
    gate.set()
    store.wait()
    (path,) = published(store.directory)
    blank = {key: torch.ones_like(tensor) for key, tensor in tensors.items()}
    assert store.load(path, blank) == {**STATE, "step": 7}
    for key, tensor in make_tensors(7).items():
        assert bits(blank[key]) == bits(tensor), key
    assert os.readlink(store.directory / "best") == path.name
    saved = store.take_saved()
    assert saved is not None
    assert saved.background
    assert saved.path == path
    assert store.take_saved() is None


def test_one_save_waits_for_the_other_and_takes_its_memory(tmp_path: Path) -> None:
    store = make_store(tmp_path, keep=2)
    places = []
    for step in range(1, 6):
        store.begin(content(step), best=step == 1)
        places.append([one.data_ptr() for one in store._buffers._held.values()])
    store.wait()
    assert names(store) == ["best", "step-00000001", "step-00000004", "step-00000005"]
    assert all(place == places[0] for place in places)
    for path in published(store.directory):
        blank = make_tensors(0)
        assert store.load(path, blank)["step"] == int(path.name[-1])
        assert bits(blank["model.embed.weight"]) == bits(
            make_tensors(int(path.name[-1]))["model.embed.weight"]
        )


def test_an_error_is_raised_where_the_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    store = make_store(tmp_path)
    store.begin(content(1))
    store.wait()
    with monkeypatch.context() as patched:
        patched.setattr(disk, "write_durably", fail)
        store.begin(content(2))
        while not store.failed():
            pass
        with pytest.raises(DiskFullError, match="the disk is full"):
            store.begin(content(3))
    assert names(store) == ["step-00000001"]
    assert not store.failed()
    store.begin(content(3))
    store.wait()
    assert names(store) == ["step-00000001", "step-00000003"]


def test_without_memory_for_a_copy_it_is_written_before_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "available_memory", lambda: 1000)
    store = make_store(tmp_path)
    tensors = make_tensors(1)
    store.begin(content(1, tensors))
    for tensor in tensors.values():
        tensor.zero_()
    store.wait()
    blank = make_tensors(0)
    store.load(published(store.directory)[0], blank)
    assert bits(blank["model.bf16"]) == bits(make_tensors(1)["model.bf16"])
    saved = store.take_saved()
    assert saved is not None
    assert not saved.background
    assert store._buffers._held == {}


def test_a_copy_is_dense_and_kept() -> None:
    buffers, base = Buffers(), torch.arange(12.0).reshape(3, 4)
    first = buffers.copy({"a": base.T, "b": base[1]})
    assert first is not None
    assert first["a"].is_contiguous()
    assert torch.equal(first["a"], base.T)
    assert first["b"].untyped_storage().nbytes() == 16
    second = buffers.copy({"a": base.T + 1, "b": base[1, :2]})  # one fits, one does not
    assert second is not None
    assert second["a"] is first["a"]
    assert torch.equal(second["b"], base[1, :2])


def test_an_error_is_raised_once() -> None:
    beside = Beside(None)
    beside.start(lambda: (_ for _ in ()).throw(KeyError("gone")))  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        beside.wait()
    beside.wait()
    assert not beside.failed()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 4096),
        ({"memory.max": "max", "memory.current": "1"}, 4096),
        ({"memory.max": "3000", "memory.current": "1000"}, 2000),
        ({"memory.max": "3000", "memory.current": "4000"}, 0),
    ],
)
def test_memory_of_a_container(
    limits: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(machine, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(machine, "_machine_memory", lambda: 4096)
    assert machine.available_memory() == expected


def test_memory_of_this_machine_is_told() -> None:
    assert 0 < machine.available_memory() <= machine.total_memory()
