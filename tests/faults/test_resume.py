"""Stopping and killing: the run goes on as if nothing had happened, bit by bit."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.command import (
    curve,
    kill,
    llmtrain,
    metrics,
    start,
    succeed,
    tensor_bytes,
    validation_curve,
    wait_until,
)

SETTINGS = [
    "model=gpt/debug",
    "model.dropout=0.1",  # random numbers have to come out the same too
    "data=text",
    "data.validation_fraction=0.1",
    "tokenizer=bytes",
    "train.batch_size=8",
    "train.sequence_length=48",
    "compile=never",
    "eval.every=5",
    "checkpoint.every=5",
    "checkpoint.keep=3",
    "log.every=3",  # does not divide the checkpoints: unreported steps have to be saved
    "launch.threads=1",
]


def arguments(text: Path, run: Path, steps: int, *more: str) -> list[str]:
    return ["pretrain", *SETTINGS, f"data.paths=[{text}]", f"run.dir={run}", f"train.steps={steps}", *more]


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Every logged loss, every evaluation, all weights and the optimizer's state, to the last bit."""
    assert curve(run) == curve(undisturbed)
    assert validation_curve(run) == validation_curve(undisturbed)
    assert last_checkpoint(run).name == last_checkpoint(undisturbed).name
    assert tensor_bytes(last_checkpoint(run)) == tensor_bytes(last_checkpoint(undisturbed))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed(*arguments(sentences, folder / "run", 30), cwd=folder, fresh=True)
    return folder / "run"


@pytest.mark.slow
def test_five_and_five_steps_are_ten(tmp_path, sentences):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    constant = ["schedule=constant", "schedule.warmup=0"]  # the length of a run bends other schedules
    succeed(*arguments(sentences, whole, 10, *constant), cwd=tmp_path)
    succeed(*arguments(sentences, halves, 5, *constant), cwd=tmp_path)
    output = succeed(*arguments(sentences, halves, 10, *constant), cwd=tmp_path)
    assert "from step 5" in output
    assert tensor_bytes(last_checkpoint(halves)) == tensor_bytes(last_checkpoint(whole))
    assert validation_curve(halves) == validation_curve(whole)
    assert curve(halves)[-1] == curve(whole)[-1]


@pytest.mark.slow
def test_kill_minus_nine_in_mid_step(tmp_path, sentences, undisturbed):
    run, chooser = tmp_path / "run", random.Random(1)
    for kill_at in sorted(chooser.sample(range(6, 28), 3)):
        process = start(*arguments(sentences, run, 30), cwd=tmp_path)
        wait_until(lambda at=kill_at: any(m["step"] >= at - at % 3 for m in metrics(run)), process)
        time.sleep(chooser.uniform(0, 0.05))
        kill(process)
    succeed(*arguments(sentences, run, 30), cwd=tmp_path)
    assert_same_run(run, undisturbed)


@pytest.mark.slow
def test_kill_minus_nine_in_mid_save(tmp_path, sentences, undisturbed):
    """Killed the moment the temporary directory of a checkpoint is there."""
    run = tmp_path / "run"
    for step in (10, 20):
        process = start(*arguments(sentences, run, 30), cwd=tmp_path)
        wait_until(lambda s=step: any((run / "checkpoints").glob(f".tmp-step-{s:08}*")), process)
        kill(process)
        assert not (run / "checkpoints" / f"step-{step:08}").exists() or last_checkpoint(run)
    succeed(*arguments(sentences, run, 30), cwd=tmp_path)
    assert_same_run(run, undisturbed)
    assert not list((run / "checkpoints").glob(".tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)]
)
def test_signals_save_and_the_run_goes_on(number, exit_code, tmp_path, sentences, undisturbed):
    run = tmp_path / "run"
    process = start(*arguments(sentences, run, 30), cwd=tmp_path)
    wait_until(lambda: len(metrics(run)) >= 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code, output
    assert "Traceback" not in output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] is False
    assert 6 <= summary["steps"] < 30
    assert last_checkpoint(run).name == f"step-{summary['steps']:08}"
    last_event = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (last_event["event"], last_event["exit_code"]) == ("stopped", exit_code)
    succeed(*arguments(sentences, run, 30), cwd=tmp_path)
    assert_same_run(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.equivalence)])
def test_several_processes_killed_and_resumed(processes, tmp_path, sentences):
    """Two kinds of death: one worker, and the launcher; both times all processes are gone at once."""
    several = f"launch.num_processes={processes}"
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeed(*arguments(sentences, whole, 20, several), cwd=tmp_path)
    for victim in ("worker", "launcher"):
        process = start(*arguments(sentences, run, 20, several, "launch.max_restarts=0"), cwd=tmp_path)
        steps = 5 if victim == "worker" else 10
        wait_until(lambda s=steps: (run / "checkpoints" / f"step-{s:08}").exists(), process)
        if victim == "worker":
            os.kill(workers(process.pid)[-1], signal.SIGKILL)
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 1
            assert output.count("error:") == 1
            assert "SIGKILL" in output
            assert f"rank{processes - 1}.log" in output
        else:
            left = workers(process.pid)
            kill(process)
            time.sleep(2)
            assert not [pid for pid in left if running(pid)]
    succeed(*arguments(sentences, run, 20, several), cwd=tmp_path)
    assert_same_run(run, whole)


def workers(launcher: int) -> list[int]:
    """Process ids of the workers of a launcher, in the order of their ranks."""
    import psutil

    found = [child for child in psutil.Process(launcher).children() if "llmtrain.worker" in child.cmdline()]
    return [child.pid for child in sorted(found, key=lambda child: int(child.environ()["RANK"]))]


def running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path, sentences, undisturbed):
    run, more = tmp_path / "run", ["precision=fp32", "model.dropout=0.0"]
    whole = tmp_path / "whole"
    succeed(*arguments(sentences, whole, 10, *more), cwd=tmp_path)
    process = start(*arguments(sentences, run, 10, *more, "launch.num_processes=2"), cwd=tmp_path)
    wait_until(lambda: (run / "checkpoints" / "step-00000005").exists(), process)
    kill(process)
    succeed(*arguments(sentences, run, 10, *more, "train.micro_batch_size=4"), cwd=tmp_path)
    for (_, loss), (_, expected) in zip(validation_curve(run), validation_curve(whole), strict=True):
        assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_damaged_checkpoints_are_set_aside(tmp_path, sentences, undisturbed):
    run = tmp_path / "run"
    succeed(*arguments(sentences, run, 15), cwd=tmp_path)
    newest = last_checkpoint(run)
    data = next(newest.glob("*.safetensors"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    (run / "summary.json").unlink()
    output = succeed(*arguments(sentences, run, 15), cwd=tmp_path)
    assert "set aside" in output
    assert "from step 10" in output
    for checkpoint in (run / "checkpoints").glob("step-*"):
        next(checkpoint.glob("*.safetensors")).unlink()
    (run / "summary.json").unlink()
    done = llmtrain(*arguments(sentences, run, 15), cwd=tmp_path)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_divergence_ends_with_exit_code_five(tmp_path, sentences):
    more = ["optim.lr=1e30", "optim.clip_norm=0", "train.max_bad_steps=3", "schedule.warmup=0"]
    done = llmtrain(*arguments(sentences, tmp_path / "run", 30, *more), cwd=tmp_path)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "not finite for 3 steps in a row" in done.stderr
    assert "skipped" in done.stdout


@pytest.mark.slow
def test_a_frozen_key_and_a_second_run_are_refused(tmp_path, sentences):
    run = tmp_path / "run"
    process = start(*arguments(sentences, run, 100000), cwd=tmp_path)
    wait_until(lambda: len(metrics(run)) >= 2, process)
    second = llmtrain(*arguments(sentences, run, 100000), cwd=tmp_path)
    assert second.returncode == 7
    assert str(run) in second.stderr
    kill(process)
    changed = llmtrain(*arguments(sentences, run, 100000, "optim.lr=0.5"), cwd=tmp_path)
    assert changed.returncode == 2
    assert "optim.lr" in changed.stderr
    assert "0.5" in changed.stderr
