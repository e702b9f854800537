"""A run that a mistake ends before its first step leaves no directory behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.command import llmtrain


def test_a_missing_file(tmp_path: Path) -> None:
    done = llmtrain("pretrain", "data=text", "data.paths=[missing.txt]", "run.name=r", cwd=tmp_path)
    assert done.returncode == 3
    assert "there is no file" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_keys_of_a_group_that_nothing_is_chosen_of(cli: Callable[..., Any]) -> None:
    result = cli("finetune", "init_from=x", "task.paths=[a.csv]", "adapt.rank=4")
    assert result.code == 2
    assert "adapt.rank is given, but no adapt is chosen" in result.err
    assert "give adapt=lora too" in result.err
