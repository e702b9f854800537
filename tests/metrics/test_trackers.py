"""TensorBoard and Weights & Biases: what their own readers find in the files."""

from __future__ import annotations

import importlib.util
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain.metrics.trackers import TensorBoard, WeightsAndBiases, check_packages, named_numbers
from llmtrain.schema.fields import LogConfig
from llmtrain.utils.errors import ConfigError

BLOCK = 32768
KEY = "0123456789abcdef" * 2 + "01234567"


def train(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "train", "step": step, "total_steps": 9, "loss": loss, "eta_seconds": 3.0}


def test_numbers_are_grouped_by_kind_and_only_finite_ones_are_shown() -> None:
    assert named_numbers({**train(1, 2.0), "lr": float("nan"), "text": "x"}) == {"train/loss": 2.0}
    assert named_numbers({"kind": "validation", "step": 1, "validation_f1": 1}) == {"validation/f1": 1.0}
    assert named_numbers({"kind": "norms", "step": 1, "weight_norm/head": 2.0}) == {"weight_norm/head": 2.0}


def test_a_package_that_is_missing_is_told_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(LogConfig())
    with pytest.raises(ConfigError) as caught:
        check_packages(LogConfig(tensorboard=True, wandb=True))
    assert [problem.where for problem in caught.value.problems] == ["log.tensorboard", "log.wandb"]
    assert "llmtrain[wandb]" in str(caught.value)


def test_tensorboard_purges_what_a_restart_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path / "tb", 0, "seed: 1\n")
    for step in (1, 2, 3, 4):
        first.metrics(train(step, float(step)))
    # no close: a kill leaves what was reported, and the run goes on from step 2
    second = TensorBoard(tmp_path / "tb", 2, "seed: 1\n")
    second.metrics(train(3, 30.0))
    second.event({"event": "sample", "step": 3, "number": 1, "prompt": "a", "sample": "b"})
    second.event({"event": "checkpoint", "step": 3})
    second.close()
    read = EventAccumulator(str(tmp_path / "tb"))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    (text,) = read.Tensors("samples/1/text_summary")
    assert b"ab" in text.tensor_proto.string_val[0]


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB writes it, in blocks, behind the header of wandb's files."""
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb_works_offline_and_writes_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sink = WeightsAndBiases(tmp_path, {"optim": {"lr": 0.5}}, [train(1, 1.0), train(2, 2.0)])
    sink.metrics(train(3, 3.0))
    sink.metrics({"kind": "validation", "step": 3, "validation_loss": 7.0})
    sink.event({"event": "sample", "step": 3, "prompt": "a", "sample": "b"})
    sink.close()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + 30
    while path.stat().st_size < 1000 and time.monotonic() < end:  # wandb's own process writes it, a bit later
        time.sleep(0.05)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    rows = []
    for data in log_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            rows.append({key: items.get(key) for key in ("_step", "train/loss", "validation/loss")})
    assert rows == [
        {"_step": "1", "train/loss": "1", "validation/loss": None},
        {"_step": "2", "train/loss": "2", "validation/loss": None},
        {"_step": "3", "train/loss": "3", "validation/loss": "7"},
    ]
