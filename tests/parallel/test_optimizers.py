"""Every optimizer trains in shares as it does on whole tensors, keeps what the formula says, and is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmtrain.model.build import build_model
from llmtrain.recipe.memory import state_bytes
from llmtrain.schema.optim import AdafactorConfig, AdamConfig, LionConfig, OptimConfig, SGDConfig
from llmtrain.schema.parallel import resolve_degrees, stage_blocks
from tests.helpers.layouts import ALONE, SETUPS, Found, run
from tests.helpers.processes import run_ranks
from tests.helpers.trainings import LAYOUTS, Visit, load
from tests.helpers.works import works
from tests.parallel.test_checkpoints import BEFORE, DECODER, merged, run_in, train_all

STEPS = 5
OPTIMIZERS: dict[str, OptimConfig] = {
    "adam": AdamConfig(lr=1e-3, weight_decay=0.1),
    "sgd": SGDConfig(lr=0.1, weight_decay=0.1, nesterov=True),
    "adafactor": AdafactorConfig(lr=1e-2, weight_decay=0.1),
    "lion": LionConfig(lr=1e-3),
}
Case = tuple[str, str, str]
"""Optimizer, work and layout."""


def run_all(rank: int, cases: list[Case]) -> list[Found]:
    """What each process does."""
    return [
        run(works()[work], replace(SETUPS[layout], optim=OPTIMIZERS[kind]), STEPS)
        for kind, work, layout in cases
    ]


def compare(folder: Path, world: int, cases: list[Case]) -> None:
    """Each case with one process, by the losses of all steps and of the evaluation behind them."""
    alone = {case: run(works()[case[1]], replace(ALONE, optim=OPTIMIZERS[case[0]]), STEPS) for case in cases}
    by_rank = run_ranks(run_all, world, folder, cases, timeout=60 + 20 * len(cases))
    for case, *found in zip(cases, *by_rank, strict=True):
        assert alone[case].losses[0] != alone[case].losses[-1]
        for one in found:
            assert one.losses == pytest.approx(alone[case].losses, rel=1e-6), case
            assert one.norms == pytest.approx(alone[case].norms, rel=1e-5), case
        kind, work, layout = case
        model = build_model(works()[work].model, works()[work].objective.build_head)
        parallel = SETUPS[layout].parallel
        degrees, _ = resolve_degrees(parallel, world)
        blocks = stage_blocks(len(model.backbone.blocks), parallel.num_stages(degrees.pp))
        for stage, size in enumerate(state_bytes(model, degrees, blocks, OPTIMIZERS[kind])):
            assert max(one.state_bytes for one in found if one.stage == stage) == size, case


def test_factors_of_shares_are_those_of_whole_matrices(tmp_path: Path) -> None:
    compare(tmp_path, 2, [("adafactor", "llama", "fsdp2")])


@pytest.mark.equivalence
@pytest.mark.parametrize("world", [2, 4])
def test_every_optimizer_equals_itself_on_one_process(world: int, tmp_path: Path) -> None:
    layouts = {2: ["fsdp2", "tp2", "pp2"], 4: ["fsdp2_tp2", "hsdp2x2", "fsdp2_pp2"]}[world]
    cases = [(kind, work, name) for kind in OPTIMIZERS for work in ("gpt", "bert") for name in layouts]
    compare(tmp_path, world, cases)


@pytest.mark.equivalence
@pytest.mark.parametrize("kind", [*OPTIMIZERS, "muon"])
def test_a_checkpoint_serves_every_layout(kind: str, tmp_path: Path, sentences: Path) -> None:
    """One process goes on from any layout, and any layout from one process, with the same bits."""
    names = ["single", "fsdp2-tp2", "fsdp2-pp2"]
    trained = train_all(tmp_path, sentences, names, BEFORE, *DECODER, f"optim={kind}", "optim.ema=0.9")
    for name in names:
        world, source = LAYOUTS[name][0], "fsdp2-tp2" if name == "single" else "single"
        held = run_in(world, tmp_path, load, [Visit(trained.configs[name], [trained.runs[source]])])
        assert merged(one[0][0] for one in held) == trained.digests[source], name
