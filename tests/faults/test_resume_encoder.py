"""Killed and resumed, encoders and fine-tuning go on with the same bits too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command import curve, kill, metrics, start, succeed, tensor_bytes, wait_until
from tests.helpers.tasks import write_classification

SMALL = [
    "train.batch_size=8",
    "train.sequence_length=48",
    "compile=never",
    "eval.every=5",
    "checkpoint.every=5",
    "log.every=3",
    "launch.threads=1",
]
PRETRAIN = [
    "pretrain",
    "model=bert/debug",
    "objective=mlm_nsp",
    "tokenizer=wordpiece",
    "tokenizer.vocab_size=120",
    "data=text",
    "data.documents=paragraph",
    *SMALL,
]


def scores(run: Path) -> list[dict]:
    """Every evaluation, but for times."""
    return metrics(run, "validation")


def kill_and_resume(words: list[str], run: Path, cwd: Path) -> None:
    """kill -9 some steps behind a checkpoint, then the same command again."""
    process = start(*words, cwd=cwd)
    wait_until(lambda: bool(curve(run)) and curve(run)[-1][0] >= 12, process)
    kill(process)
    assert curve(run)[-1][0] < 40
    assert "resuming" in succeed(*words, cwd=cwd)


def assert_same(run: Path, undisturbed: Path) -> None:
    assert curve(run) == curve(undisturbed)
    assert [{**one, "seconds": 0} for one in scores(run)] == [
        {**one, "seconds": 0} for one in scores(undisturbed)
    ]
    last = [max((path / "checkpoints").glob("step-*")) for path in (run, undisturbed)]
    assert tensor_bytes(last[0]) == tensor_bytes(last[1])


@pytest.mark.slow
def test_pretraining_and_fine_tuning(tmp_path, sentences):
    pretrain = [*PRETRAIN, f"data.paths=[{sentences}]", "train.steps=40"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed(*pretrain, f"run.dir={whole}", cwd=tmp_path)
    kill_and_resume([*pretrain, f"run.dir={killed}"], killed, tmp_path)
    assert_same(killed, whole)

    examples = write_classification(tmp_path / "train.tsv", 77)
    finetune = ["finetune", f"init_from={whole}", f"task.paths=[{examples}]", "train.steps=40", *SMALL]
    tuned, tuned_again = tmp_path / "tuned", tmp_path / "tuned_again"
    succeed(*finetune, f"run.dir={tuned}", cwd=tmp_path)
    kill_and_resume([*finetune, f"run.dir={tuned_again}"], tuned_again, tmp_path)
    assert_same(tuned_again, tuned)
    assert (tuned / "predictions.jsonl").read_text() == (tuned_again / "predictions.jsonl").read_text()
