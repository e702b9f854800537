"""Every layout trains and evaluates as one process does, and holds what the formula says.

What is marked `equivalence` is run by `make equivalence` only. Processes are started once for each number of
them, and go through all cases that were selected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from llmtrain.model.build import build_model
from llmtrain.optim.optimizer import freeze, frozen_names
from llmtrain.recipe.memory import state_bytes
from llmtrain.schema.parallel import resolve_degrees, stage_blocks
from tests.helpers.layouts import ALONE, SETUPS, Found, run
from tests.helpers.processes import run_ranks
from tests.helpers.works import works


class Case(NamedTuple):
    """A training in a layout."""

    work: str
    layout: str


LANGUAGE = ["gpt", "llama", "few_tokens", "bert", "modern_bert"]
WINDOWS = ["window", "plain_window"]
TASKS = ["converse", "classify", "classify_decoder", "tag", "probe", "answer"]
ALL = [*LANGUAGE, *TASKS]
DEFAULT: dict[str, list[str]] = {
    "ddp2": ["gpt", "bert", "answer"],
    "fsdp2": ["llama", "bert", "tag"],
    "fsdp2_kept": ["gpt"],
    "tp2": ["converse", "llama", "few_tokens", "bert", "classify", "tag", "answer"],
    "cp2": ["converse", "gpt", "plain_window", "llama", "bert", "modern_bert"],
    "pp2": ["converse", "gpt", "bert", "classify_decoder", "tag", "probe", "answer"],
    "pp2_gpipe": ["deep"],
    "pp2_interleaved": ["deep_classify"],
    "pp2_zero_bubble": ["deep"],
    "tp2_recompute": ["gpt"],
    "tp2_compiled": ["llama"],
    "fsdp2_compiled": ["llama"],
    "hsdp2x2": ["bert"],
    "fsdp2_tp2": ["gpt"],
    "cp2_tp2": ["llama"],
    "tp2_pp2": ["classify"],
    "dp2_tp2_pp2": ["llama"],
}
"""What the default suite runs."""

MORE: dict[str, list[str]] = {
    "ddp2": ALL,
    "fsdp2": ALL,
    "tp2": [*ALL, *WINDOWS],
    "cp2": [*LANGUAGE, *WINDOWS],
    "pp2": [*ALL, *WINDOWS],
    "fsdp2_recompute": ["gpt", "bert"],
    "pp2_recompute": ["llama"],
    "pp2_gpipe": ["deep_classify"],
    "pp2_interleaved": ["deep"],
    "pp2_zero_bubble": ["deep_classify"],
    "zero_bubble_recompute": ["deep"],
    "fsdp2_selective": ["gpt", "bert"],
    "tp2_selective": ["gpt", "llama"],
    "pp2_selective": ["llama"],
    "fsdp2_selective_compiled": ["llama"],
    "tp2_selective_compiled": ["llama"],
    "tp2_compiled": ["bert"],
    "cp2_compiled": ["llama"],
    "pp2_compiled": ["llama"],
    "fsdp2_inductor": ["llama"],
    "tp2_inductor": ["llama"],
    "hsdp2x2": ALL,
    "fsdp4": ALL,
    "tp4": ["gpt", "llama", "few_tokens", "tag"],
    "pp4": ["deep", "deep_classify"],
    "dp2_tp2": ALL,
    "dp2_pp2": ALL,
    "fsdp2_tp2": ALL,
    "fsdp2_pp2": ALL,
    "fsdp2_pp2_always": ALL,
    "tp2_pp2": ALL,
    "tp2_pp2_interleaved": ["deep", "deep_classify"],
    "cp2_tp2": [*LANGUAGE, *WINDOWS],
    "cp2_pp2": [*LANGUAGE, *WINDOWS],
    "dp2_tp2_pp2": ["bert", "classify"],
    "fsdp2_tp2_pp2": ["llama", "bert", "classify"],
    "hsdp2x2_tp2": ["llama", "bert", "classify"],
    "cp2_tp2_dp2": ["llama", "bert"],
    "cp2_tp2_pp2": ["llama", "bert"],
}
"""What `make equivalence` runs besides."""


def cases() -> list[Any]:
    """All of them, as pytest wants them."""
    default = [Case(work, layout) for layout, names in DEFAULT.items() for work in names]
    every = [Case(work, layout) for layout, names in MORE.items() for work in names]
    more = [case for case in every if case not in default]
    marked = [pytest.param(case, id="-".join(case), marks=pytest.mark.equivalence) for case in more]
    return [pytest.param(case, id="-".join(case)) for case in default] + marked


def run_all(rank: int, chosen: list[Case]) -> list[Found]:
    """What each process does."""
    found = []
    for case in chosen:
        try:
            found.append(run(works()[case.work], SETUPS[case.layout]))
        except Exception as error:
            raise RuntimeError(f"in {case}") from error
    return found


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], list[Found]]:
    """What each process found in a case."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    selected = {item.callspec.params["case"] for item in items if item.module is request.module}

    @functools.cache
    def of_world(world: int) -> dict[Case, list[Found]]:
        chosen = sorted(case for case in selected if SETUPS[case.layout].world == world)
        directory: Path = tmp_path_factory.mktemp(f"world{world}")
        timeout = 60 + 10 * world * len(chosen)
        by_rank = run_ranks(run_all, world, directory, chosen, timeout=timeout)
        return dict(zip(chosen, map(list, zip(*by_rank, strict=True)), strict=True))

    return lambda case: of_world(SETUPS[case.layout].world)[case]


@functools.cache
def alone(work: str, precision: str = "fp32") -> Found:
    """One process with the whole batch at once."""
    return run(works()[work], replace(ALONE, precision=precision))


@pytest.mark.parametrize("case", cases())
def test_a_layout_equals_one_process(case: Case, found: Callable[[Case], list[Found]]) -> None:
    expected = alone(case.work)
    gradients: dict[str, np.ndarray] = {}
    for one in found(case):
        assert one.losses == pytest.approx(expected.losses, rel=1e-6)
        assert one.norms == pytest.approx(expected.norms, rel=1e-5)
        assert one.stats == pytest.approx(expected.stats, rel=1e-6)
        if expected.outputs is not None:
            np.testing.assert_allclose(one.outputs, expected.outputs, rtol=0, atol=1e-5)
        gradients |= one.gradients
    assert gradients.keys() == expected.gradients.keys()
    for name, gradient in gradients.items():
        # What a bias of keys gets is noise: adding the same to all keys changes no attention weight.
        bound = 1e-5 * np.linalg.norm(expected.gradients[name]) + 1e-7
        assert np.linalg.norm(gradient - expected.gradients[name]) < bound, name


@pytest.mark.parametrize("case", cases())
def test_a_process_holds_what_the_formula_says(case: Case, found: Callable[[Case], list[Found]]) -> None:
    work, how = works()[case.work], SETUPS[case.layout]
    model = build_model(work.model, work.objective.build_head)
    freeze(model, frozen_names(model, work.freeze))
    degrees, _ = resolve_degrees(how.parallel, how.world)
    blocks = stage_blocks(len(model.backbone.blocks), how.parallel.num_stages(degrees.pp))
    expected = state_bytes(model, degrees, blocks)
    for stage, size in enumerate(expected):
        held = [one.state_bytes for one in found(case) if one.stage == stage]
        # Shares are rounded up in the first processes, and what is left for the last ones is less.
        assert max(held) == size
        assert min(held) > 0.8 * size


LOW = [
    Case("bert", "fsdp2_bf16"),
    Case("bert", "tp2_bf16"),
    Case("llama", "cp2_bf16"),
    Case("llama", "pp2_bf16"),
]


@pytest.mark.parametrize("case", LOW, ids="-".join)
def test_bf16_stays_close(case: Case, found: Callable[[Case], list[Found]]) -> None:
    expected = alone(case.work, "bf16")
    assert expected.losses[0] != alone(case.work).losses[0]
    for one in found(case):
        assert one.losses == pytest.approx(expected.losses, rel=2e-3)
        assert one.norms == pytest.approx(expected.norms, rel=4e-3)
