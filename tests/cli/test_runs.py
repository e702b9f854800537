"""`llmtrain runs`: tables, one run in detail, comparisons; whatever the directories hold."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.command.completion import candidates
from tests.helpers.paths import ROOT
from tests.metrics.test_report import make_run

Cli = Callable[..., Any]


@pytest.fixture
def several(cli: Cli, tmp_path: Path) -> Path:
    """Runs of every kind below ./runs."""
    folder = tmp_path / "runs"
    make_run(folder / "small", [3.0, 2.0], seconds=61, tokens=100, tokens_per_second=5, peak_memory_bytes=1e9)
    make_run(folder / "wide", [3.0, 1.5, 1.25], events=[{"event": "stopped"}], parameters=1234)
    config = (folder / "wide/config.yaml").read_text()
    (folder / "wide/config.yaml").write_text(config.replace("dim: 16", "dim: 32\n  bias: true"))
    os.utime(folder / "wide/config.yaml", (4e9, 4e9))
    (folder / "broken").mkdir()
    (folder / "broken/config.yaml").write_text("{")
    (folder / "no_run").mkdir()
    make_run(folder / "swept/0", [4.0])
    (folder / "file").write_text("")
    return folder


def names(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines()[1:]]


def test_a_table_of_all_runs(cli: Cli, several: Path) -> None:
    result = cli("runs")
    assert result.code == 0
    lines = {line.split()[0]: line for line in result.out.splitlines()}
    assert lines.keys() == {"name", "small", "wide", "broken", "0"}
    assert "finished  2/9" in lines["small"]
    assert "loss 2.0000" in lines["small"]
    assert "1:01" in lines["small"]
    assert "stopped" in lines["wide"]
    assert names(result.out)[-1] == "wide", "the newest last"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sort=best"], ["broken", "wide", "small", "0"]),
        (["sort=name", "state=finished"], ["0", "small"]),
        (["model.dim=32"], ["wide"]),
        (["model.bias=true"], ["wide"]),
        (["optim.lr=1e-1", "name=[sw]*", "sort=name"], ["small", "wide"]),
        (["sort=name", "last=1"], ["wide"]),
        (["dir=runs/swept"], ["0"]),
    ],
)
def test_sorting_and_choosing(cli: Cli, several: Path, words: list[str], expected: list[str]) -> None:
    assert names(cli("runs", "ls", *words).out) == expected


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["lss"], 2, "did you mean 'ls'"),
        (["ls", "sort=bset"], 2, "did you mean 'best'"),
        (["ls", "model.dmi=3"], 2, "did you mean 'model.dim'"),
        (["ls", "last=x"], 2, "whole number"),
        (["show"], 2, "runs show RUN"),
        (["show", "smal", "wide"], 2, "runs show RUN"),
        (["show", "samll"], 3, "did you mean 'small'"),
        (["show", "small", "picture=a.svg"], 2, "runs show RUN"),
        (["compare", "small"], 2, "RUN RUN"),
        (["compare", "small", "wide", "picture=a.gif"], 2, ".svg"),
        (["compare", "small", "wide", "picture=no/where/a.svg"], 3, "cannot write"),
    ],
)
def test_mistakes(cli: Cli, several: Path, words: list[str], code: int, message: str) -> None:
    result = cli("runs", *words)
    assert result.code == code
    assert message in result.err


def test_no_runs_are_no_mistake(cli: Cli) -> None:
    assert "no run" in cli("runs").out
    assert cli("runs", "ls", "dir=nowhere").code == 0


def test_one_run_by_the_beginning_of_its_name_or_its_path(cli: Cli, several: Path) -> None:
    result = cli("runs", "show", "sm")
    assert result.code == 0
    for piece in ("small: finished", "2 of 9", "lr=0.1", "kind=gpt dim=16", "o", "step-00000002", "a=b"):
        assert piece in result.out
    assert cli("runs", "show", str(several / "small")).out == result.out
    assert "broken: broken" in cli("runs", "show", "broken").out


def test_a_comparison(cli: Cli, several: Path) -> None:
    result = cli("runs", "compare", "small", "wide", "picture=both.svg")
    assert result.code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines() if line.split()}
    assert rows["model.dim"] == ["16", "32"]
    assert rows["model.bias"] == ["-", "true"]
    assert "optim.lr" not in rows
    assert rows["2"] == ["2.0000", "1.5000"]
    root = ET.parse("both.svg").getroot()
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"training loss", "validation loss", "small", "wide"} <= texts
    assert cli("runs", "compare", "broken", "small", "swept/0").code == 0


def test_reports_are_made_anew(cli: Cli, several: Path) -> None:
    result = cli("runs", "report", "small", "broken")
    assert result.code == 0
    assert (several / "small/report.html").exists()
    assert (several / "broken/report.html").exists()
    assert "runs/small/report.html" in result.out


def test_help_and_completion(cli: Cli, several: Path) -> None:
    assert "runs compare RUN RUN" in cli("runs", "--help").out
    assert "list, show and compare runs" in cli("--help").out
    assert "runs" in candidates(["ru"])
    assert candidates(["runs", ""]) == ["ls", "show", "compare", "report"]
    assert candidates(["runs", "show", "sm"]) == ["small"]
    assert "wide" in candidates(["runs", "compare", "small", ""])
    assert "small" not in candidates(["runs", "compare", "small", ""])
    assert "sort=best" in candidates(["runs", "ls", "so"])


def test_no_torch_is_imported(several: Path) -> None:
    code = "import sys; from llmtrain.cli import main; main(['runs', 'compare', 'small', 'wide']); "
    code += "print(sorted({'torch', 'numpy', 'rich', 'hydra'} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=several.parent, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
