"""Weights from elsewhere: processes read their shares of them, and one process uses what layouts train."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import safetensors
from torch import Tensor

from llmtrain.checkpoint.hf import files
from llmtrain.compose.compose import compose
from llmtrain.recipe.checkpointed import open_pretrained, start_from
from llmtrain.schema.roots import FinetuneConfig
from llmtrain.worker import RECIPES
from tests.helpers.command import metrics
from tests.helpers.layouts import ALONE, SETUPS, local, prepare
from tests.helpers.processes import run_ranks
from tests.helpers.recipes import TINY, call, context, pretrain
from tests.helpers.tasks import write_classification
from tests.helpers.trainings import digests
from tests.helpers.works import works

LAYOUTS = ("fsdp2", "tp2", "pp2")


class Reads:
    """Counts what is read from safetensors files.

    Attributes:
        total: bytes that were read.
        alive: bytes of them that somebody still holds.
        peak: the most that were ever held.
    """

    def __init__(self) -> None:
        self.total = self.alive = self.peak = 0

    def note(self, tensor: Tensor) -> Tensor:
        """A tensor was read."""
        self.total += tensor.nbytes
        self.alive += tensor.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(tensor, self._gone, tensor.nbytes)
        return tensor

    def _gone(self, size: int) -> None:
        self.alive -= size

    @contextmanager
    def safe_open(self, *arguments: Any, **settings: Any) -> Iterator[File]:
        """Stands for `safetensors.safe_open`."""
        with original(*arguments, **settings) as file:
            yield File(file, self)


original = safetensors.safe_open


@dataclass
class File:
    """An open file that notes what is read of it."""

    file: Any
    reads: Reads

    def get_tensor(self, key: str) -> Tensor:
        return self.reads.note(self.file.get_tensor(key))

    def get_slice(self, key: str) -> Slice:
        return Slice(self.file.get_slice(key), self.reads)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@dataclass
class Slice:
    """A tensor in an open file that notes what is read of it."""

    slice: Any
    reads: Reads

    def __getitem__(self, key: Any) -> Tensor:
        return self.reads.note(self.slice[key])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slice, name)


@dataclass
class Found:
    """What a process read, and what it had then; sizes in bytes."""

    peak: int
    total: int
    own: int
    largest: int
    digests: dict[str, str]


def begin(rank: int, cases: list[tuple[Path, str]]) -> list[Found]:
    """Start from weights in several layouts."""
    found = []
    for source, layout in cases:
        reads = Reads()
        pretrained = open_pretrained(str(source), context())
        step = prepare(replace(works()["bert"], model=pretrained.model), SETUPS.get(layout, ALONE))
        model = step.layout.model
        with (
            mock.patch.object(safetensors, "safe_open", reads.safe_open),
            mock.patch.object(files, "safe_open", reads.safe_open),
        ):
            start_from(pretrained, model, set(pretrained.weights().shapes))
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        own = sum(local(one).nbytes for one in parameters.values())
        largest = max(one.numel() * one.itemsize for one in parameters.values())
        found.append(Found(reads.peak, reads.total, own, largest, digests(parameters)))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    """A run of an encoder, which is in a directory for transformers too."""
    folder = tmp_path_factory.mktemp("source")
    run = pretrain(folder / "run", sentences, "model=bert/debug", "objective=mlm_nsp")
    call("convert", f"source={run}", f"target={folder / 'hf'}")
    return folder


def test_a_process_reads_its_share_only(source: Path, tmp_path: Path) -> None:
    kinds = ["run", "hf"]
    cases = [(source / kind, layout) for kind in kinds for layout in LAYOUTS]
    alone = dict(zip(kinds, begin(0, [(source / kind, "single") for kind in kinds]), strict=True))
    assert alone["run"].total == alone["run"].own
    for (path, layout), *found in zip(cases, *run_ranks(begin, 2, tmp_path, cases, timeout=300), strict=True):
        expected, held = alone[path.name], {}
        for one in found:
            held |= one.digests
            assert one.own < 0.75 * expected.own
            assert one.peak <= expected.largest
            if path.name == "run":
                assert one.total == one.own, layout
        assert held == expected.digests, layout


def tune(rank: int, configs: list[FinetuneConfig], runs: list[Path]) -> None:
    """Fine-tune in several layouts."""
    for config, run in zip(configs, runs, strict=True):
        assert RECIPES["finetune"](config, context(run)) == 0


def test_one_process_evaluates_and_predicts_with_what_a_layout_has_tuned(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = write_classification(tmp_path / "train.tsv", 40)
    words = [f"init_from={source / 'run'}", f"task.paths=[{examples}]", *TINY, "launch.num_processes=2"]
    layouts = {"fsdp": ["parallel.dp_shard=2"], "pp": ["parallel.pp=2"]}
    configs = [compose("finetune", [*words, *layout])[0].config for layout in layouts.values()]
    runs = [tmp_path / name for name in layouts]
    run_ranks(tune, 2, tmp_path, configs, runs, timeout=300)
    predictions = []
    for run in runs:
        capsys.readouterr()
        assert call("evaluate", f"init_from={run}") == 0
        (measured,) = metrics(run, "validation")
        assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(
            measured["validation_loss"], rel=1e-6
        )
        assert call("predict", f"init_from={run}", f"input={examples}", f"output={run / 'out.jsonl'}") == 0
        predictions.append(
            [json.loads(line)["label"] for line in (run / "out.jsonl").read_text().splitlines()]
        )
    assert len(predictions[0]) == 40
    assert predictions[0] == predictions[1]
