"""A run that a mistake ends before its first step leaves no directory behind."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.command import llmtrain


def test_a_missing_file(tmp_path: Path) -> None:
    done = llmtrain("pretrain", "data=text", "data.paths=[missing.txt]", "run.name=r", cwd=tmp_path)
    assert done.returncode == 3
    assert "there is no file" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []
