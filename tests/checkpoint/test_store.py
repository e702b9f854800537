"""Checkpoints come back bit by bit, or are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.checkpoint.manifest import MANIFEST, InvalidCheckpoint, parse_step, published, step_name, verify
from llmtrain.utils.errors import ConfigError, ExitCode, NoCheckpointError
from tests.checkpoint.samples import STATE, bits, make_store, make_tensors, names, save


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = save(store, 7)
    assert path.name == "step-00000007"
    assert store.find() == path
    blank = {key: torch.zeros_like(tensor) for key, tensor in make_tensors().items()}
    pointers = {key: tensor.data_ptr() for key, tensor in blank.items()}
    state = store.load(path, blank)
    assert state == {**STATE, "step": 7}
    assert state["lr"].hex() == STATE["lr"].hex()  # type: ignore[attr-defined]
    for key, tensor in make_tensors(7).items():
        assert bits(blank[key]) == bits(tensor), key
        assert blank[key].data_ptr() == pointers[key], "not loaded in place"
    assert (path / "config.yaml").read_text() == "verb: pretrain\nstep: 7\n"


def test_every_file_is_text_or_safetensors(tmp_path: Path) -> None:
    path = save(make_store(tmp_path), 1)
    suffixes = {file.name: file.suffix for file in path.iterdir()}
    assert set(suffixes.values()) == {".json", ".yaml", ".safetensors"}
    assert ".metadata" not in suffixes
    for file in path.iterdir():
        if file.suffix != ".safetensors":
            file.read_text(encoding="utf-8")
        else:
            header = int.from_bytes(file.read_bytes()[:8], "little")
            json.loads(file.read_bytes()[8 : 8 + header])


def test_files_may_be_read_by_whom_any_new_file_may_be_read_by(tmp_path: Path) -> None:
    path = save(make_store(tmp_path), 1)
    (tmp_path / "new").touch()
    assert {file.stat().st_mode for file in path.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    path = save(make_store(tmp_path), 3)
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["step"] == 3
    assert manifest["layout"] == {"world_size": 1, "dp_replicate": 1}
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["files"]) == {file.name for file in path.iterdir()} - {MANIFEST}
    assert names(make_store(tmp_path)) == ["step-00000003"]


def test_a_published_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = save(store, 1)
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}
    assert store.save(1, {"other": torch.ones(1)}, {}, {}) == path
    assert before == {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in path.iterdir()}


def test_a_damaged_checkpoint_is_replaced_by_a_new_save(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = save(store, 1)
    (path / "state.json").write_text("{}")
    assert save(store, 1) == path
    verify(path)
    assert names(store) == ["bad-step-00000001", "step-00000001"]


@pytest.mark.parametrize(
    ("tensors", "state", "files", "error", "match"),
    [
        ({"a": 1.0}, {}, {}, TypeError, "a is a float, not a tensor"),
        ({"a": torch.ones(1)}, {"x": torch.ones(1)}, {}, TypeError, r"state\.x is a Tensor"),
        ({"a": torch.ones(1)}, {"x": {1: 2}}, {}, TypeError, "has the key 1"),
        ({"a": torch.ones(1)}, {"x": [(1, 2)]}, {}, TypeError, r"state\.x\[0\] is a tuple"),
        ({"a": torch.ones(1)}, {}, {"../x": ""}, ValueError, "cannot hold a file"),
        ({"a": torch.ones(1)}, {}, {"state.json": ""}, ValueError, "cannot hold a file"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, tensors: Any, state: Any, files: Any, error: type[Exception], match: str
) -> None:
    store = make_store(tmp_path)
    with pytest.raises(error, match=match):
        store.save(1, tensors, state, files)
    assert names(store) == []


def test_a_tied_tensor_is_refused(tmp_path: Path) -> None:
    weight = torch.ones(3, 3)
    with pytest.raises(ValueError, match="are one tensor"):
        make_store(tmp_path).save(1, {"embed": weight, "head": weight.T}, {}, {})


# --- damage ---------------------------------------------------------------------------------------------


def flip(name: str) -> Callable[[Path], None]:
    """Flip one random bit of the first file that matches."""

    def damage(path: Path) -> None:
        file = next(path.glob(name))
        data = bytearray(file.read_bytes())
        bit = random.Random(name).randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)

    return damage


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    """Change the manifest without its digest."""

    def damage(path: Path) -> None:
        content = json.loads((path / MANIFEST).read_text()) | changes
        (path / MANIFEST).write_text(json.dumps(content))

    return damage


def truncate(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)


def swap_tensors(path: Path) -> None:
    """Another checkpoint's tensors, whole in themselves."""
    shutil.copy(next((path.parent / step_name(1)).glob("*.safetensors")), next(path.glob("*.safetensors")))


def as_later_step(path: Path) -> None:
    path.rename(path.with_name(step_name(9)))


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit in tensors": flip("*.safetensors"),
    "bit in state": flip("state.json"),
    "bit in config": flip("config.yaml"),
    "bit in tokenizer": flip("tokenizer.json"),
    "bit in manifest": flip(MANIFEST),
    "truncated": truncate,
    "tensors deleted": lambda path: next(path.glob("*.safetensors")).unlink(),
    "state deleted": lambda path: (path / "state.json").unlink(),
    "manifest deleted": lambda path: (path / MANIFEST).unlink(),
    "manifest of another step": edit_manifest(step=1),
    "manifest of another format": edit_manifest(format=99),
    "manifest without a file": edit_manifest(files={}),
    "manifest is a list": lambda path: (path / MANIFEST).write_text("[]"),
    "renamed": as_later_step,
    "tensors of another step": swap_tensors,
    "tensors added": lambda path: shutil.copy(next(path.glob("*.safetensors")), path / "more.safetensors"),
    "emptied": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_checkpoint_is_set_aside_and_the_previous_is_taken(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = make_store(tmp_path)
    first = save(store, 1)
    damage(save(store, 2))
    assert store.find() == first
    (event, details) = store.report[0]  # type: ignore[index]
    assert event == "checkpoint_rejected"
    assert details["reason"]
    assert Path(details["moved_to"]).name.startswith("bad-step-")
    assert [path.name for path in published(store.directory)] == ["step-00000001"]
    assert len(store.report) == 1  # type: ignore[arg-type]
    assert store.find() == first
    flip("state.json")(first)
    for _ in range(2):  # also when asked again, with nothing but rejected ones there
        with pytest.raises(NoCheckpointError, match="bad-step-00000001") as caught:
            store.find()
        assert caught.value.exit_code == ExitCode.NO_CHECKPOINT == 4


def test_every_bit_of_a_small_manifest_counts(tmp_path: Path) -> None:
    path = make_store(tmp_path).save(1, {"w": torch.ones(1)}, {}, {})
    original = (path / MANIFEST).read_bytes()
    content = json.loads(original)
    for bit in random.Random(0).sample(range(len(original) * 8), 300):
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        (path / MANIFEST).write_bytes(data)
        try:
            assert verify(path) == content  # white space only
        except InvalidCheckpoint:
            continue
    (path / MANIFEST).write_bytes(original)
    verify(path)


def test_where_there_never_was_a_checkpoint_find_says_none(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    assert store.find() is None
    store.directory.mkdir()
    assert store.find() is None


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    leftover = store.directory / ".tmp-step-00000005"
    leftover.mkdir(parents=True)
    (leftover / "tensors-00001.safetensors").write_bytes(b"half")
    (store.directory / ".tmp-best").symlink_to("step-00000005")
    assert store.find() is None
    assert names(store) == []


# --- loading strictly -----------------------------------------------------------------------------------


def test_all_differences_are_listed(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    path = store.save(1, {"a": torch.ones(2, 3), "b": torch.ones(1), "c": torch.ones(1)}, {}, {})
    target = {"a": torch.zeros(3, 2), "c": torch.zeros(1, dtype=torch.bfloat16), "d": torch.zeros(1)}
    with pytest.raises(ConfigError) as caught:
        store.load(path, target)
    text = str(caught.value)
    for part in (
        "d is missing in the checkpoint",
        "b is in the checkpoint, but not in this run",
        "a is (2, 3) float32 in the checkpoint and (3, 2) float32 in this run",
        "c is (1,) float32 in the checkpoint and (1,) bfloat16 in this run",
        str(path),
    ):
        assert part in text
    assert not target["a"].any()


# --- keep and best --------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path, keep=2)
    for step in range(1, 6):
        save(store, step)
        if step == 2:
            store.mark_best(2)
    assert names(store) == ["best", "step-00000002", "step-00000004", "step-00000005"]
    assert os.readlink(store.directory / "best") == "step-00000002"
    inode = (store.directory / "step-00000002").stat().st_mtime_ns
    store.mark_best(5)
    assert names(store) == ["best", "step-00000004", "step-00000005"]
    assert os.readlink(store.directory / "best") == "step-00000005"
    assert inode
    shutil.move(tmp_path / "checkpoints", tmp_path / "moved")
    assert (tmp_path / "moved" / "best" / MANIFEST).is_file(), "the link must be relative"


def test_a_bad_best_loses_its_link(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first = save(store, 1)
    flip("state.json")(save(store, 2))
    store.mark_best(2)
    assert store.find() == first
    assert names(store) == ["bad-step-00000002", "step-00000001"]


def test_step_names() -> None:
    assert parse_step("step-00001000") == 1000
    assert parse_step(step_name(123456789)) == 123456789
    for name in ("step-1000", "step-000001000", "bad-step-00001000", ".tmp-step-00001000", "step-0000x000"):
        assert parse_step(name) is None
