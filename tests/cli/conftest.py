"""The command in this process: words in; exit code, output and what it would have turned into out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmtrain.cli import main


class Executed(Exception):
    """The process would have become another program."""


@dataclass
class Result:
    """What one call did."""

    code: int | None
    out: str
    err: str
    executed: list[str] = field(default_factory=list)


Cli = Callable[..., Result]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Call the command in an empty directory; `exec` is recorded, not done."""
    monkeypatch.chdir(tmp_path)
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def execv(path: str, words: list[str]) -> None:
        raise Executed(*words[2:])

    monkeypatch.setattr(os, "execv", execv)

    def call(*words: str) -> Result:
        capfd.readouterr()
        executed: list[str] = []
        code: int | None = None
        try:
            code = main(list(words))
        except Executed as program:
            executed = list(program.args)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err, executed)

    return call
