"""Adapters learn in every layout as on one process, and nothing else does.

Processes are started once, and go through all cases.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from llmtrain.adapt.lora import add_adapters
from llmtrain.model.build import build_model
from llmtrain.model.layers.lora import is_adapter
from llmtrain.objective.causal import Causal
from llmtrain.optim.optimizer import freeze, frozen_names
from llmtrain.recipe.memory import state_bytes
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.schema.parallel import resolve_degrees, stage_blocks
from llmtrain.schema.task import ClassificationTask, Pool
from llmtrain.task.classification import Classification
from tests.helpers.layouts import ALONE, SETUPS, Found, local, prepare, run, share
from tests.helpers.processes import run_ranks
from tests.helpers.works import KINDS, LLAMA, Work, bert, example_batch, flat, gpt, plain_batch, text_batch

WEIGHTS = ("backbone.*weight",)
BASE = (*WEIGHTS, "backbone.*bias")
RANK = 3  # no number of processes divides it


def works() -> dict[str, Work]:
    everywhere = LoRAConfig(rank=RANK, alpha=6.0)
    few = LoRAConfig(rank=RANK, targets=["attention.query", "attention.value", "mlp.down"])
    classify = Classification(ClassificationTask(labels=KINDS), Pool.first)
    untied = (*WEIGHTS, "head.projection.weight")
    return {
        "gpt": Work(gpt(), Causal(False), plain_batch, freeze=BASE, adapt=few),
        "llama": Work(gpt(**LLAMA), Causal(True), text_batch, freeze=untied, adapt=everywhere),
        "deep": Work(gpt(num_layers=4), Causal(True), text_batch, freeze=BASE, adapt=everywhere),
        "classify": Work(bert(), classify, example_batch, flat, freeze=BASE, adapt=everywhere),
    }


class Case(NamedTuple):
    work: str
    layout: str


CASES = [
    *[Case("gpt", "ddp2"), Case("classify", "fsdp2"), Case("llama", "fsdp2"), Case("gpt", "tp2")],
    *[Case("llama", "tp2"), Case("classify", "tp2"), Case("llama", "cp2"), Case("llama", "pp2")],
    *[Case("classify", "pp2"), Case("llama", "tp2_compiled"), Case("llama", "fsdp2_bf16")],
    *[Case("gpt", "tp2_recompute"), Case("deep", "pp2_zero_bubble"), Case("deep", "pp2_interleaved")],
]


def run_all(rank: int) -> tuple[dict[Case, Found], dict[str, str]]:
    found = {}
    for case in CASES:
        try:
            found[case] = run(works()[case.work], SETUPS[case.layout])
        except Exception as error:
            raise RuntimeError(f"in {case}") from error
    return found, whole_adapters_after_dropout()


def whole_adapters_after_dropout() -> dict[str, bytes]:
    """The matrices that both processes of a tensor parallel layout have whole, after two steps."""
    dropping = LoRAConfig(rank=RANK, dropout=0.3)
    work = Work(gpt(), Causal(False), plain_batch, freeze=BASE, adapt=dropping)
    how = SETUPS["tp2"]
    step = prepare(work, how)
    for number in range(2):
        batch = work.batch(number)
        step(share(batch, step.layout.mesh, how.microbatches), work.objective.count(batch), number)
        step.clear_gradients()
    whole = {}
    for name, one in step.layout.parameters.items():
        parameter: Any = one
        if is_adapter(name) and all(not placement.is_shard(1) for placement in parameter.placements):
            whole[name] = parameter.full_tensor().detach().numpy().tobytes()
    return whole


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[Case, Found], dict[str, bytes]]]:
    directory: Path = tmp_path_factory.mktemp("adapters")
    return run_ranks(run_all, 2, directory, timeout=240)


@functools.cache
def alone(work: str, precision: str = "fp32") -> Found:
    from dataclasses import replace

    return run(works()[work], replace(ALONE, precision=precision))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_layout_equals_one_process(case: Case, found: Any) -> None:
    low = case.layout.endswith("bf16")
    expected = alone(case.work, "bf16" if low else "fp32")
    gradients: dict[str, np.ndarray] = {}
    for one, _ in found:
        assert one[case].losses == pytest.approx(expected.losses, rel=2e-3 if low else 1e-6)
        assert one[case].norms == pytest.approx(expected.norms, rel=4e-3 if low else 1e-5)
        gradients |= one[case].gradients
    assert gradients.keys() == expected.gradients.keys()
    learned = {name for name in gradients if not name.startswith("head.")}
    assert learned
    assert all(map(is_adapter, learned))
    for name, gradient in gradients.items():
        bound = (4e-2 if low else 1e-5) * np.linalg.norm(expected.gradients[name]) + 1e-7
        assert np.linalg.norm(gradient - expected.gradients[name]) < bound, name


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_process_holds_what_the_formula_says(case: Case, found: Any) -> None:
    work, how = works()[case.work], SETUPS[case.layout]
    model = build_model(work.model, work.objective.build_head)
    add_adapters(model, work.adapt)
    freeze(model, frozen_names(model, work.freeze))
    degrees, _ = resolve_degrees(how.parallel, how.world)
    blocks = stage_blocks(len(model.backbone.blocks), how.parallel.num_stages(degrees.pp))
    for stage, size in enumerate(state_bytes(model, degrees, blocks)):
        held = [one[case].state_bytes for one, _ in found if one[case].stage == stage]
        assert max(held) == size
        assert min(held) > 0.7 * size


def test_what_is_whole_stays_the_same_everywhere_under_dropout(found: Any) -> None:
    (_, first), (_, second) = found
    assert len(first) > 10
    assert first == second


def test_only_adapters_have_state() -> None:
    work = works()["llama"]
    step = prepare(work, ALONE)
    batch = work.batch(0)
    step(share(batch, step.layout.mesh, 1), work.objective.count(batch), 0)
    learning = {name for name, one in step.layout.parameters.items() if one.grad is not None}
    kept = {name for name, one in step.layout.parameters.items() if one in step.optimizer.state}
    assert learning == kept == {name for name in step.layout.parameters if is_adapter(name)}
    moments = sum(
        local(value).nbytes
        for state in step.optimizer.state.values()
        for value in state.values()
        if value.ndim
    )
    assert moments == 8 * sum(one.numel() for name, one in step.layout.parameters.items() if name in kept)
    assert torch.is_grad_enabled()
