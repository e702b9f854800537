"""Muon in every layout: its matrices are gathered, and the curve is that of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from llmtrain.optim.owners import Owners
from llmtrain.schema.optim import MuonConfig, Products
from llmtrain.utils import dist
from tests.helpers.command import curve, succeed, tensor_bytes
from tests.helpers.layouts import ALONE, SETUPS, Found, run
from tests.helpers.processes import run_ranks
from tests.helpers.works import works

EXACT = MuonConfig(lr=1e-3, products=Products.fp32)
LOW = MuonConfig(lr=1e-3, products=Products.bf16)
STEPS = 4

DEFAULT = [("llama", "fsdp2"), ("gpt", "tp2")]
MORE = {
    2: [
        ("gpt", "ddp2"),
        ("gpt", "fsdp2"),
        ("bert", "fsdp2"),
        ("converse", "fsdp2"),
        ("llama", "tp2"),
        ("bert", "tp2"),
        ("converse", "tp2"),
        ("llama", "cp2"),
        ("gpt", "pp2"),
    ],
    4: [
        ("gpt", "hsdp2x2"),
        ("bert", "hsdp2x2"),
        ("llama", "fsdp4"),
        ("llama", "fsdp2_tp2"),
        ("converse", "fsdp2_tp2"),
        ("gpt", "fsdp2_pp2"),
        ("llama", "dp2_pp2"),
        ("llama", "cp2_tp2"),
        ("gpt", "tp2_pp2"),
    ],
    8: [("llama", "hsdp2x2_tp2")],
}
"""(work, layout) by the number of processes, for `make equivalence`."""


def train(rank: int, cases: list[tuple[str, str]], optim: MuonConfig) -> list[Found]:
    """What each process does."""
    return [run(works()[work], replace(SETUPS[layout], optim=optim), STEPS) for work, layout in cases]


def compare(cases: list[tuple[str, str]], world: int, directory: Path) -> None:
    """Train in all layouts, and alone."""
    by_rank = run_ranks(train, world, directory, cases, EXACT, timeout=60 + 10 * world * len(cases))
    for number, (work, layout) in enumerate(cases):
        expected = run(works()[work], replace(ALONE, optim=EXACT), STEPS)
        for found in by_rank:
            assert found[number].losses == pytest.approx(expected.losses, rel=1e-6), (work, layout)
            assert found[number].norms == pytest.approx(expected.norms, rel=1e-5), (work, layout)


def test_layouts_equal_one_process(tmp_path: Path) -> None:
    compare(DEFAULT, 2, tmp_path)


@pytest.mark.equivalence
@pytest.mark.parametrize("world", MORE)
def test_more_layouts_equal_one_process(world: int, tmp_path: Path) -> None:
    compare(MORE[world], world, tmp_path)


@pytest.mark.equivalence
@pytest.mark.parametrize("layout", ["ddp2", "fsdp2", "tp2", "hsdp2x2"])
def test_products_in_bf16_stay_close_and_repeat(layout: str, tmp_path: Path) -> None:
    expected = run(works()["llama"], replace(ALONE, optim=LOW), STEPS)
    cases = [("llama", layout)] * 2
    for one, again in run_ranks(train, SETUPS[layout].world, tmp_path, cases, LOW):
        assert one.losses == again.losses
        assert one.losses == pytest.approx(expected.losses, rel=2e-3)


@pytest.mark.equivalence
@pytest.mark.parametrize(
    "parallel", [["launch.num_processes=1"], ["launch.num_processes=2", "parallel=fsdp"]]
)
def test_five_and_five_steps_are_ten(parallel: list[str], tmp_path: Path, sentences: Path) -> None:
    settings = ["model=gpt/debug", "optim=muon", "data=text", f"data.paths=[{sentences}]", "tokenizer=bytes"]
    settings += ["train.batch_size=8", "train.sequence_length=48", "compile=never", "launch.threads=1"]
    settings += ["schedule=constant", "schedule.warmup=0", "log.every=1", *parallel]
    for name, steps in (("whole", 10), ("halves", 5), ("halves", 10)):
        words = [f"run.dir={tmp_path / name}", f"train.steps={steps}"]
        succeed("pretrain", *settings, *words, cwd=tmp_path)
    ends = [tmp_path / name / "checkpoints" / "step-00000010" for name in ("whole", "halves")]
    assert tensor_bytes(ends[0]) == tensor_bytes(ends[1])
    assert curve(tmp_path / "whole") == curve(tmp_path / "halves")


def round_trip(rank: int) -> None:
    """Matrices shared out in all ways, uneven ones and copies among them, to their owners and back."""
    flat, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    for mesh, placements in (
        (flat, [Shard(0)]),
        (flat, [Shard(1)]),
        (grid, [Replicate(), Shard(0)]),
        (grid, [Shard(0), Shard(1)]),
        (grid, [Shard(0), Replicate()]),
        (grid, [Shard(0), Shard(0)]),
    ):
        whole = [torch.arange(h * w).view(h, w).float() + h for h, w in ((8, 4), (5, 6), (3, 9), (1, 2))]
        shared = [distribute_tensor(one, mesh, placements, src_data_rank=None) for one in whole]
        shares = [one.to_local() for one in shared]
        owners = Owners(shared, rank)
        gathered = owners.gather(shares)
        assert all(matrix.equal(whole[number]) for number, matrix in gathered.items())
        assert dist.gather(torch.tensor(float(len(gathered)))).sum() == len(whole)
        results = owners.scatter({number: -matrix for number, matrix in gathered.items()}, shares)
        assert all(one.equal(-share) for one, share in zip(results, shares, strict=True))


@pytest.mark.equivalence
def test_shares_come_to_their_owner_and_back(tmp_path: Path) -> None:
    run_ranks(round_trip, 4, tmp_path)
