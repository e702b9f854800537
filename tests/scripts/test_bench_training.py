"""Works whose contenders train in turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "bench"
MODULES = ("machine", "table", "turns", "training")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, which stands in a folder and not in a package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import training

    yield training
    for name in MODULES:
        sys.modules.pop(name)


def test_contenders_that_do_not_fit_together_are_compared_with_ours_of_the_same_minutes(
    training: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five in groups of three: ours is in both, and each other in one."""
    turns: list[list[str]] = []

    def take(group: list[Any], rounds: int, **_: Any) -> None:
        turns.append([one.name for one in group])
        for one in group:
            one.about = {"tokens": 10, "flops": 1e9, "compile": True, "precision": "bf16"}
            one.seconds = [float(len(turns))] * rounds

    def make(bench: Any, folder: Path) -> list[Any]:
        names = ["llmtrain", "a", "b", "c", "d"]
        return [training.Contender(name, [], {}, "glibc") for name in names]

    monkeypatch.setattr(training, "take_turns", take)
    monkeypatch.setitem(training.WORKS, "work", training.Work("title", "tokens/s", make, together=3))
    bench = training.Bench(tmp_path, rounds=2)
    result = training.run("work", bench, peak=1e12)
    assert turns == [["llmtrain", "a", "b"], ["llmtrain", "c", "d"]]
    rows = result["rows"]
    assert [row["name"] for row in rows] == ["llmtrain", "a", "b", "c", "d"]
    assert rows[0]["seconds"] == [1.0, 1.0, 2.0, 2.0]
    assert [row["reference"][0] for row in rows[1:]] == [1.0, 1.0, 2.0, 2.0]
    assert result["amount"] == 10
