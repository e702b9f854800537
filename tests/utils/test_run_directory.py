"""What is left of a run that came to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.utils.errors import ExitCode
from llmtrain.utils.run_directory import RunDirectory


@pytest.fixture
def started(tmp_path: Path) -> RunDirectory:
    """As the start of a run leaves it."""
    run = RunDirectory(tmp_path / "runs" / "new")
    run.logs.mkdir(parents=True)
    for file in (run.config, run.requested, run.overrides, run.environment, run.rank_log(0)):
        file.write_text("x")
    run.lock.write_text(json.dumps({"pid": 1, "host": "here", "made": True}))
    return run


@pytest.mark.parametrize("code", [ExitCode.CONFIG, ExitCode.DATA, ExitCode.NO_CHECKPOINT])
def test_a_new_directory_goes_after_a_mistake(code: int, started: RunDirectory) -> None:
    assert started.discard(code)
    assert list(started.path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "code", [ExitCode.OK, ExitCode.BUG, ExitCode.DISK, ExitCode.MEMORY, ExitCode.TERMINATED]
)
def test_it_stays_after_anything_else(code: int, started: RunDirectory) -> None:
    assert not started.discard(code)
    assert started.rank_log(0).exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "notes.txt"])
def test_it_stays_if_anything_else_lies_in_it(name: str, started: RunDirectory) -> None:
    (started.path / name).touch()
    assert not started.discard(ExitCode.DATA)
    assert started.config.exists()


@pytest.mark.parametrize("lock", ['{"pid": 1, "made": false}', '{"pid": 1}', "", "[]"])
def test_it_stays_if_it_was_there_before(lock: str, started: RunDirectory) -> None:
    started.lock.write_text(lock)
    assert not started.discard(ExitCode.DATA)
    started.lock.unlink()
    assert not started.discard(ExitCode.DATA)
    assert started.config.exists()
