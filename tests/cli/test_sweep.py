"""`-m`: trials, their directories, and the table at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.command.style import Style
from llmtrain.command.sweep import Sweep, Trial, plan, read_score
from llmtrain.compose.compose import compose
from llmtrain.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Any]


def trials(*words: str, verb: str = "pretrain") -> list[Trial]:
    return plan(compose(verb, words, None, multirun=True), words)


def test_each_trial_has_its_words_and_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = trials("optim.lr=1e-3,3e-4", "model.dim=128,256", "train.steps=2")
    assert [trial.swept for trial in found] == [
        ["optim.lr=0.001", "model.dim=128"],
        ["optim.lr=0.001", "model.dim=256"],
        ["optim.lr=0.0003", "model.dim=128"],
        ["optim.lr=0.0003", "model.dim=256"],
    ]
    assert found[0].words == ["optim.lr=0.001", "model.dim=128", "train.steps=2"]
    assert len({trial.directory for trial in found}) == 4


def test_a_trial_s_words_compose_to_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["optim.lr=1,2"], ["optim.lr=1,2", "run.name=a"], ["run.dir=out dir", "optim.lr=1,2"]):
        found = trials(*words)
        for trial in found:
            (again,) = plan(compose("pretrain", trial.words), trial.words)[:1]
            (config,) = (one.config for one in compose("pretrain", trial.words))
            if "run.name=a" in words:
                assert config.run.name == f"a-{found.index(trial)}"
            elif "run.dir=out dir" in words:
                assert config.run.dir == str(tmp_path / f"out dir/{found.index(trial)}")
            else:
                assert again.directory == trial.directory


def test_trials_that_would_share_a_directory_are_refused() -> None:
    with pytest.raises(ConfigError, match="share a run directory"):
        trials("train.steps=1,2")
    assert [trial.words[-1] for trial in trials("train.steps=1,2", "run.name=n")] == [
        "run.name='n-0'",
        "run.name='n-1'",
    ]


def test_report_marks_the_best_and_survives_failures(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"metric": "loss", "best_validation_loss": 2.5}')
    assert read_score(tmp_path) == ("loss", 2.5)
    (tmp_path / "summary.json").write_text('{"metric": "loss", "best_validation_loss": NaN}')
    assert read_score(tmp_path) == ("loss", None)
    found = [
        Trial([], ["optim.lr=1"], exit_code=0, score=3.0),
        Trial([], ["optim.lr=2"], exit_code=0, score=2.5),
        Trial([], ["optim.lr=3"], exit_code=5, score=1.0),
        Trial([], ["optim.lr=4"]),
    ]
    lines = Sweep("pretrain", found, [], Style(colour=False)).report().splitlines()
    assert lines[2].endswith("best")
    assert "best" not in lines[1] + lines[3]
    assert "5 diverged" in lines[3]
    assert "not run" in lines[4]


def test_a_real_sweep_of_child_processes(tmp_path: Path) -> None:
    words = ["generate", "-m", "init_from=run", "sample.top_k=1,2", "--dry-run"]
    result = subprocess.run(
        [sys.executable, "-m", "llmtrain", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert "trial 1 of 2: sample.top_k=1" in result.stdout
    assert "top_k: 2" in result.stdout
    assert result.stdout.count("0 ok") == 2


def test_a_mistake_in_one_trial_starts_none(cli: Cli, tmp_path: Path) -> None:
    result = cli("pretrain", "-m", "optim.lr=1e-3,-1")
    assert result.code == 2
    assert "optim.lr=-1" in result.err
    assert list(tmp_path.iterdir()) == []


def test_seeds_get_a_mean_and_a_deviation_and_accuracy_is_better_when_higher() -> None:
    trials = [
        Trial([], ["optim.lr=1", f"run.seed={seed}"], exit_code=0, metric="accuracy", score=score)
        for seed, score in ((1, 0.5), (2, 0.75), (3, 1.0))
    ]
    report = Sweep("finetune", trials, [], Style(colour=False)).report()
    assert "best accuracy" in report
    marked = [line for line in report.splitlines() if line.rstrip().endswith(" best")]
    assert [line.split()[-2] for line in marked] == ["1.0000"]
    assert "optim.lr=1: accuracy 0.7500 (standard deviation 0.2500, 3 seeds)" in report
