"""Runs that are spread over processes in several ways: stopped and gone on with in another layout, or killed
and started again by the launcher."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.test_resume import assert_same_run, last_checkpoint, workers
from tests.helpers.command import curve, metrics, start, succeed, wait_until
from tests.helpers.processes import run_ranks
from tests.helpers.recipes import call
from tests.helpers.trainings import Job, composed_config, train

SETTINGS = [
    *["experiment=debug", "model.num_heads=4", "data=text", "data.validation_fraction=0.1", "compile=never"],
    *["train.sequence_length=32", "eval.max_tokens=512", "launch.threads=1"],
]


def words(text: Path, run: Path, steps: int, *more: str) -> list[str]:
    return ["pretrain", *SETTINGS, f"data.paths=[{text}]", f"run.dir={run}", f"train.steps={steps}", *more]


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_other_layouts_and_is_used_by_one_process(
    tmp_path: Path, sentences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = ["precision=fp32", "log.every=1"]
    alone, run = tmp_path / "alone", tmp_path / "run"
    succeed(*words(sentences, alone, 24, *exact), cwd=tmp_path)

    process = start(*words(sentences, run, 24, *exact, "parallel.tp=2"), cwd=tmp_path)
    wait_until(lambda: len(metrics(run)) > 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    stopped = json.loads((run / "summary.json").read_text())["steps"]
    assert 4 <= stopped < 24

    output = succeed(*words(sentences, run, 24, *exact, "parallel.pp=2"), cwd=tmp_path)
    assert f"resuming   from step {stopped}" in output
    assert "(pp=2)" in output
    expected, found = curve(alone), curve(run)
    assert [step for step, *_ in found] == list(range(1, 25))
    for (_, loss, norm), (_, other_loss, other_norm) in zip(expected, found, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_norm == pytest.approx(norm, rel=1e-5)
    layout = json.loads((last_checkpoint(run) / "MANIFEST.json").read_text())["layout"]
    assert (layout["world_size"], layout["pp"], layout["tp"]) == (2, 2, 1)
    texts, scores = [], []
    for source in (alone, run):
        capsys.readouterr()
        sample = ["prompt=The ", "sample.max_new_tokens=20", "sample.temperature=0"]
        assert call("generate", f"init_from={source}", *sample) == 0
        texts.append(capsys.readouterr().out)
        assert call("evaluate", f"init_from={source}") == 0
        scores.append(json.loads(capsys.readouterr().out)["loss"])
    assert texts[0] == texts[1]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def shoot(run: Path, command: list[str], times: list[int], chooser: random.Random) -> str:
    """Start a run, and kill -9 a random worker whenever one of some steps is done; what it printed."""
    process = start(*command, cwd=run.parent)
    for number, step in enumerate(times, start=1):
        wait_until(lambda at=step: any(record["step"] >= at for record in metrics(run)), process, 300)
        os.kill(chooser.choice(workers(process.pid)), signal.SIGKILL)
        wait_until(lambda count=number: resumptions(run) == count, process, 300)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def resumptions(run: Path) -> int:
    """How often the training was taken up again."""
    return (run / "events.jsonl").read_text().count('"event": "resumed"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "world", "kills", "steps"),
    [
        (["parallel.tp=2"], 2, 1, 16),
        pytest.param(["parallel.dp_shard=2", "parallel.tp=2"], 4, 10, 120, marks=pytest.mark.equivalence),
    ],
    ids=["tp2, once", "fsdp2-tp2, ten times"],
)
def test_killed_workers_change_nothing(
    layout: list[str], world: int, kills: int, steps: int, tmp_path: Path, sentences: Path
) -> None:
    """All start again by themselves, from the last checkpoint, and at the end every bit is the same."""
    more = [*layout, "model.dropout=0.1", "checkpoint.every=5", "eval.every=8", "log.every=3"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    undisturbed = composed_config(*words(sentences, whole, steps, *more)[1:])
    run_ranks(train, world, tmp_path, [Job(undisturbed, whole, steps)], timeout=300)
    chooser = random.Random(steps)
    times = sorted(chooser.sample(range(6, steps - 6), kills))
    output = shoot(run, words(sentences, run, steps, *more), times, chooser)
    assert output.count("all workers start again from the checkpoint of step") == kills
    assert_same_run(run, whole)
