"""What the config left open, and how it is decided."""

import dataclasses
import shutil

import pytest
import torch

from llmtrain.model.build import build_model
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.recipe import resolve
from llmtrain.schema.fields import Compile, Device, LaunchConfig, Precision, TrainConfig
from llmtrain.schema.model import GPTConfig
from llmtrain.schema.parallel import Degrees, ParallelConfig
from llmtrain.schema.roots import PretrainConfig
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
    ("micro", "degrees", "expected"),
    [
        (None, {}, 12),
        (None, {"dp_replicate": 3}, 4),
        (2, {"dp_replicate": 3}, 2),
        (6, {"dp_shard": 2, "tp": 4}, 6),
        (None, {"tp": 5, "cp": 5}, 12),
        (None, {"pp": 2}, 3),  # 4 microbatches
        (None, {"pp": 4}, 1),  # 12: neither 8 nor 9 to 11 divide
        (None, {"pp": 4, "dp_shard": 3}, 1),  # 4: there are no 8
        (4, {"pp": 3}, 4),
    ],
)
def test_micro_batches(micro, degrees, expected):
    train = TrainConfig(batch_size=12, micro_batch_size=micro)
    assert resolve.micro_batch_size(train, ParallelConfig(), Degrees(**degrees)) == expected


@pytest.mark.parametrize(
    ("micro", "degrees"),
    [
        (None, {"dp_replicate": 5}),
        (5, {}),
        (None, {"dp_shard": 24}),
        (4, {"dp_replicate": 2}),
        (6, {"pp": 4}),
        (None, {"pp": 4, "dp_shard": 4}),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(micro, degrees):
    train = TrainConfig(batch_size=12, micro_batch_size=micro)
    with pytest.raises(ConfigError, match="cannot be shared"):
        resolve.micro_batch_size(train, ParallelConfig(), Degrees(**degrees))


def test_a_layout_is_settled_or_refused_with_all_that_is_wrong():
    config = PretrainConfig(
        launch=LaunchConfig(device=Device.cpu), parallel=ParallelConfig(tp=2, dp_shard=-1)
    )
    small = GPTConfig(num_heads=4, dim=64)
    assert str(resolve.resolve_layout(config, 4, small, 128)) == "dp_shard=2 tp=2"
    with pytest.raises(ConfigError) as caught:
        resolve.resolve_layout(config, 3, dataclasses.replace(small, num_heads=1), 127)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("labelled_share", "expected"), [(1.0, 640 / (12 * 64)), (0.15, 96 / (12 * 64)), (0, 0)]
)
def test_what_a_head_costs(labelled_share, expected):
    config = GPTConfig(num_layers=3, num_heads=4, dim=64, vocab_size=640)
    model = build_model(config, LanguageModelHead)
    assert resolve.head_in_blocks(model, labelled_share) == pytest.approx(expected, rel=0.03)


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
    def decision(flops: float, compiler: str | None = "/bin/g++", choice: Compile = Compile.auto) -> Compile:
        monkeypatch.setattr(shutil, "which", lambda name: compiler)
        return resolve.resolve_compile(choice, CPU, flops)

    assert decision(1e18) is Compile.always
    assert decision(1e9) is Compile.never
    assert decision(1e18, compiler=None) is Compile.never
    assert decision(1e9, choice=Compile.always) is Compile.always
