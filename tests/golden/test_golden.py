"""The loss curve of `model=gpt/debug` on a small text of our own, against numbers kept in a file.

It notices any change of data order, initialisation, loss, clipping, optimizer or schedule.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import write_sentences
from tests.helpers.command import metrics, succeed

GOLDEN = Path(__file__).with_name("gpt_debug.json")
TOLERANCE = 2e-5
"""Relative; processors differ in the order in which they add up."""


def golden_run(folder: Path) -> dict[str, float]:
    """Losses of 30 steps, and the validation losses, by name."""
    text = write_sentences(folder / "text.txt", 500)
    succeed(
        "pretrain",
        "model=gpt/debug",
        "data=text",
        f"data.paths=[{text}]",
        "data.documents=paragraph",
        "data.isolate_documents=true",
        "data.validation_fraction=0.1",
        "tokenizer=bpe",
        "tokenizer.vocab_size=300",
        "train.steps=30",
        "train.batch_size=8",
        "train.micro_batch_size=4",
        "train.sequence_length=32",
        "precision=fp32",
        "compile=never",
        "eval.every=15",
        "log.every=3",
        "launch.threads=1",
        f"run.dir={folder / 'run'}",
        cwd=folder,
        LLMTRAIN_CACHE=str(folder / "cache"),
    )
    losses = {f"step {m['step']}": m["loss"] for m in metrics(folder / "run")}
    return losses | {
        f"validation {m['step']}": m["validation_loss"] for m in metrics(folder / "run", "validation")
    }


@pytest.mark.slow
def test_the_curve_is_the_golden_one(tmp_path):
    expected = json.loads(GOLDEN.read_text())
    assert golden_run(tmp_path) == pytest.approx(expected, rel=TOLERANCE)
