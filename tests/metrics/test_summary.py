"""What is told of a run that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.metrics.summary import summary_rows, task_commands, text_commands, typed_path

SUMMARY = {
    "steps": 1200,
    "total_steps": 1200,
    "tokens": 21070,
    "seconds": 65.2,
    "tokens_per_second": 323.1,
    "metric": "accuracy",
    "validation_accuracy": 0.52,
    "validation_loss": 0.69262,
    "best_validation_accuracy": 0.6,
    "best_step": 1000,
    "peak_memory_bytes": 473841664,
}


def test_rows() -> None:
    assert dict(summary_rows(SUMMARY)) == {
        "steps": "1,200 of 1,200",
        "validation accuracy": "0.5200 (best 0.6000 at step 1,000)",
        "validation loss": "0.6926",
        "tokens": "21,070 in 1:05",
        "speed": "323 tokens/s",
        "peak memory": "0.47 GB per process",
    }
    assert summary_rows(SUMMARY | {"ended_early": True})[0][1].endswith(", ended early")


def test_what_is_missing_is_left_out() -> None:
    assert summary_rows({"steps": 20, "validation_loss": 4.5, "validation_accuracy": None}) == [
        ("steps", "20"),
        ("validation loss", "4.5000"),
    ]


def test_commands_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = typed_path(tmp_path / "runs" / "a b")
    assert path == "'runs/a b'"
    assert typed_path(tmp_path.parent / "run") == str(tmp_path.parent / "run")
    assert task_commands(path)[0] == "llmtrain predict init_from='runs/a b' input=FILE"
    assert text_commands(path, causal=True)[0].startswith("llmtrain generate init_from='runs/a b'")
    assert text_commands(path, causal=False)[0].startswith("llmtrain finetune task=")
