"""Whether the processes of all nodes are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.utils.errors import ExitCode
from llmtrain.utils.members import Member, code_hash, compare

FIRST = Member("node1", "aaa", "2.13.0", "pretrain optim.lr=1 run.seed=2", True)


@pytest.mark.parametrize(
    ("changes", "exit_code", "told"),
    [
        ({"code": "bbb"}, ExitCode.DATA, "bbb on node2, not aaa"),
        ({"torch": "2.14.0"}, ExitCode.DATA, "2.14.0 on node2, not 2.13.0"),
        ({"sees_run": False}, ExitCode.DATA, "node2 does not see the run directory"),
        (
            {"words": "pretrain optim.lr=3 run.seed=2"},
            ExitCode.CONFIG,
            "optim.lr=3 on node2, optim.lr=1 on node1",
        ),
        ({"words": "pretrain optim.lr=1"}, ExitCode.CONFIG, "nothing more on node2, run.seed=2 on node1"),
    ],
)
def test_the_one_that_differs_is_named(changes: dict, exit_code: int, told: str) -> None:
    other = replace(FIRST, host="node2", **changes)
    error = compare([FIRST, replace(FIRST, host="node3"), other])
    assert error is not None
    assert error.exit_code == exit_code
    assert told in str(error)
    assert "rank 2 on node2" in str(error)
    assert "rank 0 on node1" in str(error)


def test_all_alike(tmp_path: Path) -> None:
    assert compare([FIRST, replace(FIRST, host="node2")]) is None
    here = Member.here("pretrain", tmp_path / "config.yaml")
    assert not here.sees_run
    assert here.torch.startswith("2.")


def test_the_hash_changes_with_every_source_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "sub" / "b.py").write_text("y = 1\n")
    (tmp_path / "notes.txt").write_text("1")
    before = code_hash(tmp_path)
    (tmp_path / "notes.txt").write_text("2")
    assert code_hash(tmp_path) == before
    (tmp_path / "sub" / "b.py").write_text("y = 2\n")
    changed = code_hash(tmp_path)
    (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "c.py")
    assert len({before, changed, code_hash(tmp_path)}) == 3
