"""Reading another run's checkpoint changes nothing there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llmtrain.checkpoint.manifest import MANIFEST
from llmtrain.checkpoint.read import SavedWeights, read_file, read_state, resolve
from llmtrain.checkpoint.store import CheckpointStore
from llmtrain.utils.errors import ConfigError, ExitCode, NoCheckpointError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 1, 2 and 3."""
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=9, report=lambda event, details: None)
    for step in (1, 2, 3):
        tensors = {
            "model.w": torch.full((2, 2), float(step)),
            "model.b": torch.tensor(step),
            "optim.w": torch.ones(1),
        }
        store.save(step, tensors, {"step": step}, {"config.yaml": f"step: {step}\n"})
    store.mark_best(2)
    return tmp_path / "run"


def listing(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def test_a_run_means_its_best_checkpoint(run: Path) -> None:
    assert resolve(run) == (run / "checkpoints" / "step-00000002").resolve()
    assert resolve(run / "checkpoints" / "best") == resolve(run)
    assert resolve(run / "checkpoints") == resolve(run)
    assert resolve(run / "checkpoints" / "step-00000003").name == "step-00000003"


def test_without_a_best_it_means_the_newest_valid_one(run: Path) -> None:
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "step-00000003" / "state.json").write_text("{}")
    before = listing(run)
    assert resolve(run).name == "step-00000002"
    assert listing(run) == before, "reading must not set anything aside"
    for step in (1, 2):
        (run / "checkpoints" / f"step-0000000{step}" / MANIFEST).unlink()
    with pytest.raises(NoCheckpointError, match=r"state\.json") as caught:
        resolve(run)
    assert caught.value.exit_code == ExitCode.NO_CHECKPOINT


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NoCheckpointError, match="an empty directory"):
        resolve(tmp_path)


def test_other_paths_say_what_is_there(tmp_path: Path) -> None:
    for path, there in ((tmp_path / "no", "nothing"), (tmp_path, "an empty directory")):
        with pytest.raises(ConfigError, match=f"there is {there}"):
            resolve(path)
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ConfigError, match=r"there is file\.txt"):
        resolve(tmp_path)
    with pytest.raises(ConfigError, match="there is a file"):
        resolve(tmp_path / "file.txt")


def test_part_of_the_tensors(run: Path) -> None:
    weights = SavedWeights(resolve(run), "model.")
    assert weights.shapes == {"w": (2, 2), "b": ()}
    tensors = weights.read()
    assert set(tensors) == {"w", "b"}
    assert torch.equal(tensors["w"], torch.full((2, 2), 2.0))
    assert tensors["b"].item() == 2
    target = torch.zeros(2, 2, requires_grad=True)
    weights.fill({"w": target})
    assert target.eq(2).all()
    weights.fill({})  # what a process of a pipeline may have to do
    with pytest.raises(NoCheckpointError, match=r"no tensor called head\.\.\."):
        SavedWeights(resolve(run), "head.")


def test_files_are_verified_before_they_are_used(run: Path) -> None:
    checkpoint = resolve(run)
    assert read_file(checkpoint, "config.yaml") == "step: 2\n"
    assert read_state(checkpoint) == {"step": 2}
    with pytest.raises(NoCheckpointError, match="not listed"):
        read_file(checkpoint, "tokenizer.json")
    (checkpoint / "config.yaml").write_text("step: 3\n")
    with pytest.raises(NoCheckpointError, match="has changed"):
        read_file(checkpoint, "config.yaml")
    with pytest.raises(NoCheckpointError, match="has changed"):
        SavedWeights(checkpoint, "model.")
