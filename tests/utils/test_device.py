"""The peak of a device: from the table, or measured once."""

import json
import os

import pytest
import torch

from llmtrain import worker
from llmtrain.schema.roots import TRAINING
from llmtrain.utils import device
from llmtrain.utils.errors import ConfigError, UserError
from llmtrain.utils.signals import StopFlag

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "fp32", 67e12),
        ("NVIDIA RTX A1000", "bf16", None),  # not an A100
        ("Tesla T4", "bf16", None),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12),
    ],
)
def test_gpus_come_from_the_table(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device.peak_flops(torch.device("cuda"), precision) == peak


def test_a_cpu_is_measured_once_for_each_format(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(device, "measure_matrix_product", lambda p: measured.append(p) or 1e11)
    assert [device.peak_flops(CPU, p) for p in ("fp32", "fp32", "bf16")] == [1e11] * 3
    assert measured == ["fp32", "bf16"]
    assert len(json.loads((tmp_path / "peak_flops.json").read_text())) == 2


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(device, "measure_matrix_product", lambda precision: 5.0)
    assert device.peak_flops(CPU, "fp32") == 5.0


def test_the_measured_peak_is_plausible():
    assert 1e9 < device.measure_matrix_product("fp32", size=256, seconds=0.05) < 1e14


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="device cuda is not available"):
        device.pick_device("cuda")


def test_deterministic_is_set_and_told_from_other_errors(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with device.deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with device.deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    message = r"put_ has no deterministic form.*\n.*run.deterministic=true"
    with pytest.raises(ConfigError, match=message), device.deterministic(True):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="shape"), device.deterministic(True):
        torch.zeros(4).view(3)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


def test_a_worker_is_deterministic_if_it_is_told_to_be(monkeypatch):
    told = []

    def recipe(config, context):
        told.append(torch.are_deterministic_algorithms_enabled())
        return 0

    monkeypatch.setattr(worker, "DRY_RUNS", {})
    for verb in TRAINING:
        monkeypatch.setitem(worker.RECIPES, verb, recipe)
        assert worker.run_recipe(None, verb, {"run": {"deterministic": True}}, StopFlag()) == 0
        assert worker.run_recipe(None, verb, {}, StopFlag()) == 0
    assert told == [True, False] * len(TRAINING)
