"""What a layout costs each process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from llmtrain.checkpoint.state import training_tensors
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.heads.vocabulary import LanguageModelHead, MaskedNextHead
from llmtrain.model.initialise import initialise
from llmtrain.optim.average import Average
from llmtrain.optim.optimizer import build_optimizer
from llmtrain.parallel.apply import lay_out
from llmtrain.parallel.mesh import Mesh
from llmtrain.recipe.memory import state_bytes
from llmtrain.schema.model import BERTConfig, GPTConfig
from llmtrain.schema.optim import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimConfig,
    SGDConfig,
)
from llmtrain.schema.parallel import Degrees, ParallelConfig, PipelineSchedule, resolve_degrees, stage_blocks

D, F, V, T, L = 32, 128, 96, 16, 4
MATRICES, NORM = 4 * D * D + 2 * D * F, 2 * D
BLOCK = MATRICES + 4 * D + F + D + 2 * NORM
"""Numbers of a GPT-2 block, biases included."""


def gpt(tie: bool = True) -> Assembled:
    config = GPTConfig(
        num_layers=L,
        num_heads=4,
        dim=D,
        vocab_size=V - 1,
        vocab_multiple=32,
        max_positions=T,
        tie_embeddings=tie,
    )
    return build_model(config, LanguageModelHead)


def bert() -> Assembled:
    config = BERTConfig(num_layers=L, num_heads=4, dim=D, vocab_size=V)
    return build_model(config, MaskedNextHead)


def numbers(model: Assembled, degrees: Degrees, num_stages: int = 1) -> list[float]:
    sizes = state_bytes(model, degrees, stage_blocks(L, num_stages))
    return [size / 16 for size in sizes]


def test_a_process_alone_has_everything_once() -> None:
    for model in (gpt(), gpt(tie=False), bert()):
        assert numbers(model, Degrees(dp_replicate=3)) == [model.num_parameters()]


def test_what_is_frozen_has_neither_gradient_nor_moments() -> None:
    model = gpt()
    model.requires_grad_(False)
    assert numbers(model, Degrees()) == [model.num_parameters() / 4]


@pytest.mark.parametrize(
    "config",
    [
        *[AdamWConfig(), AdamConfig(ema=0.9), SGDConfig(), SGDConfig(momentum=0.0), LionConfig(ema=0.9)],
        *[AdafactorConfig(), MuonConfig()],
    ],
    ids=lambda config: f"{config.kind}-{config.ema}",
)
def test_every_optimizer_keeps_what_the_formula_says(config: OptimConfig) -> None:
    model = gpt()
    materialise(model, torch.device("cpu"))
    initialise(model, 0)
    optimizer = build_optimizer(config, model)
    own = dict(model.named_parameters())
    average = Average(own, config.ema) if config.ema else None
    tensors = training_tensors(own, optimizer, average)
    kept = sum(one.nbytes for key, one in tensors.items() if one.ndim) + 4 * model.num_parameters()
    assert state_bytes(model, Degrees(), stage_blocks(L, 1), config) == [kept]  # gradients are 4 bytes more


@pytest.mark.parametrize("degrees", [Degrees(dp_shard=2), Degrees(dp_shard=2, cp=2), Degrees(cp=4)])
def test_weights_are_shared_out_evenly(degrees: Degrees) -> None:
    assert numbers(gpt(), degrees) == [gpt().num_parameters() / (degrees.dp_shard * degrees.cp)]


def test_shares_are_rounded_up() -> None:
    parts = [-(-size // 5) for size in (V, T, D, F)]
    vocabulary, positions, dim, hidden = parts
    block = 4 * dim * D + dim * F + hidden * D + 4 * dim + hidden + dim + 4 * dim
    assert numbers(gpt(), Degrees(dp_shard=5)) == [(vocabulary + positions) * D + L * block + 2 * dim]


def test_tensor_parallel_shares_out_what_the_plan_says() -> None:
    block = MATRICES / 2 + (3 * D + F) / 2 + D + D + 2 * NORM  # what sums up has its bias everywhere
    whole = V * D / 2 + T * D + L * block + NORM
    assert numbers(gpt(), Degrees(tp=2)) == [whole]
    assert numbers(gpt(), Degrees(tp=2, dp_shard=2)) == [whole / 2]


@pytest.mark.parametrize("tie", [True, False])
def test_a_pipeline_shares_out_the_blocks(tie: bool) -> None:
    first, last = numbers(gpt(tie), Degrees(pp=2), 2)
    assert first == V * D + T * D + 2 * BLOCK
    assert last == 2 * BLOCK + NORM + V * D  # tied or not, the weight is needed here


def test_stages_that_are_not_neighbours() -> None:
    stages = numbers(gpt(), Degrees(pp=2), 4)
    assert stages == [V * D + T * D + 2 * BLOCK, 2 * BLOCK + NORM + V * D]


@pytest.mark.parametrize(
    ("degrees", "rank"),
    [
        ({"dp_shard": 3}, 0),
        ({"tp": 2, "dp_shard": 2}, 0),
        ({"cp": 2, "dp_shard": 2, "dp_replicate": 2}, 4),
        ({"pp": 2, "tp": 2, "dp_shard": 2}, 0),
        ({"pp": 2, "tp": 2, "dp_shard": 2}, 4),
        ({"pp": 2, "schedule": PipelineSchedule.interleaved}, 1),
    ],
)
@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_process_holds_what_the_formula_says(
    monkeypatch: pytest.MonkeyPatch, degrees: dict[str, Any], rank: int, family: str
) -> None:
    model = gpt() if family == "gpt" else bert()
    config = ParallelConfig(**degrees)
    world = config.fixed()
    settled, _ = resolve_degrees(config, world)
    expected = state_bytes(model, settled, stage_blocks(L, config.num_stages(settled.pp)))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        mesh = Mesh.here(settled, torch.device("cpu"))
        held = lay_out(model, mesh, config, "fp32").parameters.values()
        local = [getattr(one, "to_local", lambda one=one: one)() for one in held]
        assert 16 * sum(one.numel() for one in local) == expected[mesh.coordinate["pp"]]
    finally:
        torch.distributed.destroy_process_group()
