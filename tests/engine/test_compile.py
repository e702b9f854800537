"""Compiled blocks train like eager ones, and each shape is compiled once."""

from __future__ import annotations

import shutil

import pytest
import torch

from llmtrain.model.compile import compile_blocks
from tests.helpers.models import make_model, random_batch, small_bert, small_config

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)


def train(model, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for number in range(steps):
        loss = model.sums(random_batch(seed=number))["loss"] / 32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@needs_compiler
def test_compiled_equals_eager_and_nothing_is_compiled_twice():
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = make_model(small_config())
    keys = list(compiled.state_dict())
    compile_blocks(compiled)
    expected = train(make_model(small_config()))
    first = train(compiled, steps=2)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    again = train(compiled, steps=2)
    assert counters["stats"]["unique_graphs"] == graphs
    assert first == pytest.approx(expected[:2], rel=1e-5)
    assert again[0] < first[0]
    assert list(compiled.state_dict()) == keys


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("config", "bf16"),
    [
        (small_bert(max_positions=128), False),
        (small_bert(max_positions=128), True),
        (small_config(max_positions=128), True),
    ],
)
def test_batches_of_other_lengths_are_not_compiled_anew(config, bf16):
    """In bf16 attention to a few tokens is an operator of our own."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = make_model(config)
    compile_blocks(model)

    def step(length: int) -> None:
        batch = random_batch(rows=3, length=length)
        if not config.causal:
            batch.documents = torch.zeros(batch.ids.shape, dtype=torch.int32)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.sums(batch)["loss"]
        loss.backward()

    for length in (16, 24, 24):
        step(length)
    graphs = counters["stats"]["unique_graphs"]
    for length in (40, 16, 64, 96, 24):
        step(length)
    assert counters["stats"]["unique_graphs"] == graphs
