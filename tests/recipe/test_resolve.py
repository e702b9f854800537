"""What the config left open, and how it is decided."""

import shutil

import pytest
import torch

from llmtrain.recipe import resolve
from llmtrain.schema.fields import Compile, Precision, TrainConfig
from llmtrain.schema.model import GPTConfig
from llmtrain.utils.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"steps": 7}, 7),
        ({"tokens": 1000}, 8),  # 8 x 16 tokens a step, rounded up
        ({"tokens": 1024}, 8),
        ({"epochs": 2}, 25),  # 100 rows in steps of 8
        ({"epochs": 0.001}, 1),
        ({}, 62),  # five epochs
    ],
)
def test_lengths(length, steps):
    train = TrainConfig(batch_size=8, sequence_length=16, **length)
    assert resolve.total_steps(train, rows_per_epoch=100) == steps


@pytest.mark.parametrize(
    ("micro", "processes", "expected"), [(None, 1, 12), (None, 3, 4), (2, 3, 2), (6, 2, 6)]
)
def test_micro_batches(micro, processes, expected):
    train = TrainConfig(batch_size=12, micro_batch_size=micro)
    assert resolve.micro_batch_size(train, processes) == expected


@pytest.mark.parametrize(("micro", "processes"), [(None, 5), (5, 1), (None, 24), (4, 2)])
def test_batches_that_cannot_be_shared_out_are_refused(micro, processes):
    with pytest.raises(ConfigError, match="cannot be shared"):
        resolve.micro_batch_size(TrainConfig(batch_size=12, micro_batch_size=micro), processes)


def test_the_vocabulary_is_the_tokenizers_or_larger():
    assert resolve.resolve_model(GPTConfig(), 300).vocab_size == 300
    assert resolve.resolve_model(GPTConfig(vocab_size=512), 300).vocab_size == 512
    with pytest.raises(ConfigError, match="the model has 200 tokens, the tokenizer 300"):
        resolve.resolve_model(GPTConfig(vocab_size=200), 300)


@pytest.mark.parametrize("amx", [True, False])
def test_precision_follows_the_hardware_unless_it_is_given(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve.resolve_precision(Precision.auto, CPU) is (Precision.bf16 if amx else Precision.fp32)
    assert resolve.resolve_precision(Precision.fp16, CPU) is Precision.fp16


def test_long_runs_are_compiled_where_there_is_a_compiler(monkeypatch):
    def decision(
        flops: float,
        compiler: str | None = "/bin/g++",
        choice: Compile = Compile.auto,
        precision: Precision = Precision.fp32,
    ) -> Compile:
        monkeypatch.setattr(shutil, "which", lambda name: compiler)
        return resolve.resolve_compile(choice, CPU, precision, flops)

    assert decision(1e18) is Compile.always
    assert decision(1e9) is Compile.never
    assert decision(1e18, compiler=None) is Compile.never
    assert decision(1e18, precision=Precision.bf16) is Compile.never
    assert decision(1e9, choice=Compile.always) is Compile.always
