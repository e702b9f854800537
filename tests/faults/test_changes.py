"""Runs that find their surroundings changed, and users in a hurry."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.command import llmtrain, metrics, start, start_fresh, succeed, wait_until


def arguments(text: Path, run: Path, steps: int, *more: str) -> list[str]:
    return [
        "pretrain",
        "experiment=debug",
        "data=text",
        f"data.paths=[{text}]",
        "tokenizer=characters",
        "launch.threads=1",
        f"run.dir={run}",
        f"train.steps={steps}",
        *more,
    ]


@pytest.mark.slow
def test_data_that_changed_are_noticed_on_resume(tmp_path, sentences):
    text, run = shutil.copy(sentences, tmp_path / "text.txt"), tmp_path / "run"
    succeed(*arguments(text, run, 5), cwd=tmp_path)
    text.write_text(text.read_text().replace("cat", "cab"))
    done = llmtrain(*arguments(text, run, 10), cwd=tmp_path)
    assert done.returncode == 2
    assert "the data have changed since this run was started: tokenizer, train" in done.stderr
    shutil.copy(sentences, text)
    assert "from step 5" in succeed(*arguments(text, run, 10), cwd=tmp_path)


@pytest.mark.slow
def test_best_is_pointed_at_the_right_step_after_a_kill_in_between(tmp_path, sentences):
    run = tmp_path / "run"
    more = ["eval.every=5", "checkpoint.every=5", "optim.lr=1e-3"]
    succeed(*arguments(sentences, run, 10, *more), cwd=tmp_path)
    best, summary = run / "checkpoints" / "best", json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == 10
    best.unlink()
    best.symlink_to("step-00000005")
    (run / "summary.json").unlink()
    succeed(*arguments(sentences, run, 10, *more), cwd=tmp_path)
    assert best.resolve().name == "step-00000010"
    again = json.loads((run / "summary.json").read_text())
    assert again["validation_loss"] == summary["validation_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.6, 1.4])
def test_an_early_ctrl_c_is_quiet(seconds, tmp_path, sentences):
    """So long after the run directory is there: torch is imported, the text prepared, the model made."""
    run = tmp_path / "run"
    process = start_fresh(*arguments(sentences, run, 100000), cwd=tmp_path)
    wait_until(lambda: (run / "environment.json").exists(), process)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path, sentences):
    run = tmp_path / "run"
    # Evaluation of everything after each step: there is always something that takes its time.
    process = start(*arguments(sentences, run, 100000, "train.batch_size=512"), cwd=tmp_path)
    wait_until(lambda: len(metrics(run)) >= 1, process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_text_that_is_too_short_to_validate_reports_no_validation_loss(tmp_path):
    (tmp_path / "tiny.txt").write_text("abc")
    run = tmp_path / "run"
    output = succeed(*arguments(tmp_path / "tiny.txt", run, 2, "data.validation_fraction=0.3"), cwd=tmp_path)
    assert "too short" in output
    assert metrics(run, "validation") == []
    assert json.loads((run / "summary.json").read_text())["validation_loss"] is None


@pytest.mark.slow
def test_a_broken_pipe_does_not_end_the_run(tmp_path, sentences):
    run = tmp_path / "run"
    process = start_fresh(*arguments(sentences, run, 20), cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert json.loads((run / "summary.json").read_text())["finished"]


@pytest.mark.slow
def test_minutes_stop_a_run_with_a_checkpoint(tmp_path, sentences):
    run = tmp_path / "run"
    more = ["train.minutes=0.03", "checkpoint.every=0", "eval.every=0"]
    output = succeed(*arguments(sentences, run, 1000000, *more), cwd=tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert "stopped, to be continued" in output
    assert summary["finished"] is False
    assert summary["exit_code"] == 0
    assert (run / "checkpoints" / f"step-{summary['steps']:08}").is_dir()
