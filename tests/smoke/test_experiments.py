"""Every experiment runs: two steps with its own settings, made small only in size and length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command import metrics, succeed
from tests.helpers.paths import CONFIGS

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))

SMALLER = ["train.steps=2", "train.batch_size=2", "train.micro_batch_size=1", "checkpoint.every=0"]

EXTRA = {
    "shakespeare_characters": ["schedule.warmup=0"],
    "gpt2_small": ["model.num_layers=1", "train.sequence_length=64"],
    "llama_baby": ["train.sequence_length=64"],
}

BUILT_IN = "debug"
"""This one reads the text that is built in, which takes seconds; the others get a small one."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name, tmp_path, sentences: Path):
    text = ["data=text", f"data.paths=[{sentences}]", "data.documents=paragraph"]
    data = [] if name == BUILT_IN else text
    arguments = [f"experiment={name}", f"run.dir={tmp_path / 'run'}", *SMALLER, *EXTRA.get(name, []), *data]
    succeed("pretrain", *arguments, "log.every=1", "eval.max_tokens=500", cwd=tmp_path)
    assert [m["step"] for m in metrics(tmp_path / "run")] == [1, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"]
    assert summary["steps"] == 2
    assert 0 < summary["validation_loss"] < 12
