"""`-m`: trials, their directories, and the table at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.command.children import Children, Job
from llmtrain.command.start import finished_before
from llmtrain.command.style import Style
from llmtrain.command.sweep import Sweep, Trial, plan, read_score
from llmtrain.compose.compose import compose
from llmtrain.schema.stored import config_text
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.signals import release_signals

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


def finished_run(trial: Trial, words: list[str], steps: int) -> None:
    """A run directory as a finished trial leaves it."""
    (composed,) = compose("pretrain", words)
    assert trial.directory is not None
    (trial.directory / "checkpoints/step-00000002").mkdir(parents=True)
    text = config_text("pretrain", composed.config)
    (trial.directory / "config.yaml").write_text(text)
    (trial.directory / ".requested.yaml").write_text(text)
    summary = {"finished": True, "steps": steps, "metric": "loss", "best_validation_loss": 1.5}
    (trial.directory / "summary.json").write_text(json.dumps(summary))


def test_finished_trials_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["optim.lr=1e-3,3e-4", "train.steps=2"]
    first, second = trials(*words)
    assert not first.done
    finished_run(first, first.words, 2)
    found = trials(*words)
    assert [trial.done for trial in found] == [True, False]
    assert [trial.done for trial in trials("optim.lr=1e-3,3e-4", "train.steps=3")] == [False, False]
    assert [trial.done for trial in trials(*words, "resume=never")] == [False, False]
    (composed,) = compose("pretrain", second.words)
    assert first.directory is not None
    assert finished_before(first.directory, composed.config) is None, "another learning rate"
    ran: list[str] = []
    monkeypatch.setattr(Children, "run", lambda self, command: (ran.append(command[4]), (5, 1.0))[1])
    assert Sweep("pretrain", found, [], Style(colour=False)).run() == 5
    assert ran == ["optim.lr=0.0003"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trial 2 of 2: optim.lr=0.0003"
    assert lines[2].split() == ["0", "optim.lr=0.001", "0", "ok", "before", "1.5000", "best"]
    assert "5 diverged" in lines[3]


def program(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_jobs_run_beside_each_other_and_one_that_fails_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meet = "import os, sys, time\nopen(sys.argv[1], 'w')\n"
    meet += "while not os.path.exists(sys.argv[2]): time.sleep(0.01)"
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    jobs = [
        Job([*program(f"{meet}\nprint('met'); print('no end', end='')"), *paths], "0| "),
        Job([*program(f"{meet}\nsys.exit(3)"), *reversed(paths)], "1| "),
        Job(program("import os; print(os.environ['PLACE'], os.environ['OWN'])"), "2| ", {"OWN": "x"}),
    ]
    begun: list[int] = []
    with Children() as children:
        children.run_beside(jobs, 2, begun.append, lambda place: {"PLACE": str(place)})
    assert [job.exit_code for job in jobs] == [0, 3, 0]
    assert begun == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("0| ")] == ["0| met", "0| no end"]
    assert any(line in ("2| 0 x", "2| 1 x") for line in lines)


def test_a_signal_reaches_all_jobs_and_no_other_is_started() -> None:
    release_signals()
    jobs = [Job(program("import time; time.sleep(30)"), str(i)) for i in range(3)]
    children = Children()
    begun: list[int] = []

    def begin(number: int) -> None:
        begun.append(number)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with children:
        children.run_beside(jobs, 2, begin)
    assert children.exit_code == 143
    assert [job.exit_code for job in jobs[:2]] == [128 + signal.SIGTERM] * 2
    assert jobs[2].exit_code is None
    assert 2 not in begun


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has gone")
def test_children_stop_when_the_sweep_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "stopped"
    child = f"""
import signal, sys, time
def stop(*_):
    open({str(mark)!r}, "w")
    sys.exit()
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(30)
"""
    code = "import sys; from llmtrain.command.children import Children\n"
    code += f"with Children() as c: c.run([sys.executable, '-S', '-c', {child!r}])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait(timeout=20)
    end = time.monotonic() + 20
    while not mark.exists():
        assert time.monotonic() < end, "the child goes on"
        time.sleep(0.02)


def test_places_share_out_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.command.sweep.num_cores", lambda: 8)
    monkeypatch.setattr("llmtrain.command.sweep.num_gpus", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5,7")
    sweep = Sweep("pretrain", [Trial([], []), Trial(["a"], [])], [], Style(colour=False), at_once=2)
    assert sweep._share(0) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "0,5"}
    assert sweep._share(1) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2,7"}
