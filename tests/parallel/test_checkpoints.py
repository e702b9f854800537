"""A checkpoint is the same thing in every layout: any of them goes on from any other's."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

from llmtrain.checkpoint.read import resolve
from llmtrain.checkpoint.state import MODEL_PREFIX
from llmtrain.recipe.checkpointed import open_checkpoint
from llmtrain.schema.roots import PretrainConfig
from tests.helpers.command import curve
from tests.helpers.processes import run_ranks
from tests.helpers.recipes import call, context
from tests.helpers.trainings import LAYOUTS, Held, Job, Visit, configure, digests, load, train

ENCODER = [
    *["experiment=bert_debug", "model.num_heads=4", "model.dim=32", "model.dropout=0.0"],
    # 61 rows for each of two processes, so that shards of them are uneven; segments are two.
    *["tokenizer.vocab_size=122", "model.vocab_multiple=2"],
]
DECODER = [
    *["experiment=debug", "model.num_layers=4", "model.num_heads=4", "model.num_kv_heads=4"],
    *["model.tie_embeddings=true", "model.vocab_multiple=2", "data.isolate_documents=true"],
]
SHAPE = [
    *["data=text", "data.documents=paragraph", "data.validation_fraction=0", "train.batch_size=16"],
    *["train.sequence_length=32", "precision=fp32", "compile=never", "checkpoint.every=0", "log.every=1"],
]
CORE = ["single", "ddp2", "fsdp4", "dp2-tp2", "fsdp2-pp2"]
BEFORE, ALL = 2, 30
"""Steps before a checkpoint whose tensors are compared, and of whole curves."""


@dataclass
class Trained:
    """A training in some layouts.

    Attributes:
        words: that all have in common.
        configs: by layout.
        runs: directories, by layout.
        digests: of the tensors at the end, by layout and name.
        rows: of the batch that comes next.
    """

    words: list[str]
    configs: dict[str, PretrainConfig]
    runs: dict[str, Path]
    digests: dict[str, dict[str, str]]
    rows: dict[int, list[int]] = field(default_factory=dict)


def by_world(layouts: Iterable[str]) -> list[tuple[int, list[str]]]:
    """Layouts of the same number of processes, which run in the same ones."""
    ordered = sorted(layouts, key=lambda name: LAYOUTS[name][0])
    return [
        (world, list(names)) for world, names in itertools.groupby(ordered, lambda name: LAYOUTS[name][0])
    ]


def merged(held: Iterable[Held]) -> dict[str, str]:
    """Digests of all processes; those who have the same tensor must agree on it."""
    found: dict[str, str] = {}
    for one in held:
        for key, value in one.digests.items():
            assert found.setdefault(key, value) == value, key
    return found


def rows_of(held: Iterable[Held]) -> dict[int, list[int]]:
    """Rows of all processes."""
    return {number: ids for one in held for number, ids in one.rows.items()}


def run_in(world: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """See `run_ranks`; one process is this one."""
    if world == 1:
        return [function(0, *arguments)]
    return run_ranks(function, world, folder, *arguments, timeout=900)


def train_all(folder: Path, text: Path, layouts: Iterable[str], step: int, *words: str) -> Trained:
    """Train in each layout up to a step."""
    every = list(layouts)
    common = [*words, *SHAPE, f"data.paths=[{text}]", f"train.steps={ALL}"]
    configs = {name: configure(name, *common) for name in every}
    trained = Trained(common, configs, {name: folder / name for name in every}, {})
    for world, names in by_world(every):
        jobs = [Job(configs[name], trained.runs[name], step) for name in names]
        by_rank = run_in(world, folder, train, jobs)
        for name, *held in zip(names, *by_rank, strict=True):
            trained.digests[name] = merged(held)
            trained.rows = trained.rows or rows_of(held)
    return trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Trained:
    """The encoder after some steps: its embedding is that of its head too, in another stage of a pipeline."""
    return train_all(tmp_path_factory.mktemp("encoder"), sentences, CORE, BEFORE, *ENCODER)


@dataclass
class Loaded:
    """What the layouts made of each other's checkpoints.

    Attributes:
        held: by all processes, by layout and source.
        copies: runs with what came from `single`, saved anew, by layout.
    """

    held: dict[str, dict[str, list[Held]]]
    copies: dict[str, Path]


@pytest.fixture(scope="module")
def loaded(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Every layout with every checkpoint; one more layout with that of one process."""
    folder = tmp_path_factory.mktemp("loaded")
    configs = trained.configs | {"fsdp2-tp2": configure("fsdp2-tp2", *trained.words)}
    found = Loaded({}, {name: folder / name for name in configs})
    for world, names in by_world(configs):
        visits = []
        for name in names:
            sources = [trained.runs[source] for source in (CORE if name in CORE else ["single"])]
            visits.append(Visit(configs[name], sources, [found.copies[name]]))
        by_rank = run_in(world, folder, load, visits)
        for name, *by_source in zip(names, *by_rank, strict=True):
            found.held[name] = dict(zip(CORE, map(list, zip(*by_source, strict=True)), strict=False))
    return found


@pytest.mark.parametrize("layout", CORE)
def test_each_element_is_written_once_and_nobody_writes_more_than_a_share(
    layout: str, trained: Trained
) -> None:
    written: dict[str, int] = {}
    ends: dict[str, list[int]] = {}
    shares = []
    for path in sorted(resolve(trained.runs[layout]).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            starts = json.loads(file.metadata()[CUSTOM_METADATA_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        shares.append(sum(tensor.nbytes for tensor in tensors.values()))
        for key, tensor in tensors.items():
            own = [sum(pair) for pair in zip(starts[key][SAVED_OFFSETS_KEY], tensor.shape, strict=True)]
            ends[key] = [max(pair) for pair in zip(own, ends.get(key, own), strict=True)]
            written[key] = written.get(key, 0) + tensor.numel()
    assert written == {key: math.prod(shape) for key, shape in ends.items()}
    assert written.keys() == trained.digests["single"].keys()
    assert len(shares) == LAYOUTS[layout][0]
    assert max(shares) < 1.25 * sum(shares) / len(shares)


@pytest.mark.parametrize("layout", CORE)
@pytest.mark.parametrize("source", CORE)
def test_any_layout_goes_on_from_any_other(
    source: str, layout: str, trained: Trained, loaded: Loaded
) -> None:
    """The same bits of weights and moments, and the rows that come next."""
    held = loaded.held[layout][source]
    assert merged(held) == trained.digests[source]
    assert rows_of(held) == trained.rows


@pytest.mark.parametrize("layout", CORE)
def test_one_process_opens_the_checkpoint_of_any_layout(layout: str, trained: Trained) -> None:
    opened = open_checkpoint(str(trained.runs[layout]), context(), torch.device("cpu"))
    found = digests({f"{MODEL_PREFIX}{name}": one for name, one in opened.model.named_parameters()})
    assert found.items() <= trained.digests[layout].items()
    assert len(found) == sum(key.startswith(MODEL_PREFIX) for key in trained.digests[layout])


def test_what_is_converted_does_not_tell_of_the_layout(loaded: Loaded, tmp_path: Path) -> None:
    for layout in ("single", "fsdp2-tp2", "fsdp2-pp2"):
        call("convert", f"source={loaded.copies[layout]}", f"target={tmp_path / layout}")
        assert len(list(resolve(loaded.copies[layout]).glob("*.safetensors"))) == LAYOUTS[layout][0]
        (file,) = (tmp_path / layout).glob("*.safetensors")
        assert file.read_bytes() == (tmp_path / "single" / file.name).read_bytes()


@pytest.mark.equivalence
@pytest.mark.parametrize("words", [DECODER, [*ENCODER, "model.num_layers=4"]], ids=["decoder", "encoder"])
def test_curves_do_not_tell_where_a_run_was_taken_up_in_another_layout(
    words: list[str], tmp_path: Path, sentences: Path
) -> None:
    """Ten steps in one layout and twenty in another are thirty steps of one process, for all pairs."""
    alone = train_all(tmp_path / "alone", sentences, ["single"], ALL, *words)
    begun = train_all(tmp_path / "begun", sentences, LAYOUTS, ALL - 20, *words)
    found = {}
    for world, names in by_world(LAYOUTS):
        pairs = list(itertools.product(names, LAYOUTS))
        for layout, source in pairs:
            found[source, layout] = tmp_path / f"{source} to {layout}"
            shutil.copytree(begun.runs[source], found[source, layout])
        run_in(world, tmp_path, train, [Job(begun.configs[a], found[b, a], ALL) for a, b in pairs])
    expected = curve(alone.runs["single"])
    assert len(expected) == ALL
    assert len({step for step, *_ in expected}) == ALL
    for pair, run in found.items():
        for one, other in zip(expected, curve(run), strict=True):
            assert other[0] == one[0], pair
            assert other[1] == pytest.approx(one[1], rel=1e-6), pair
            assert other[2] == pytest.approx(one[2], rel=1e-5), pair


@pytest.mark.equivalence
def test_a_run_that_was_stopped_has_every_bit_of_one_that_was_not(tmp_path: Path, sentences: Path) -> None:
    """In each layout, with dropout; what comes after the stop runs in new processes."""
    words = [*DECODER, "model.dropout=0.1"]
    whole = train_all(tmp_path / "whole", sentences, LAYOUTS, ALL, *words)
    train_all(tmp_path / "parts", sentences, LAYOUTS, 7, *words)
    parts = train_all(tmp_path / "parts", sentences, LAYOUTS, ALL, *words)
    for layout in LAYOUTS:
        assert curve(parts.runs[layout]) == curve(whole.runs[layout]), layout
        assert parts.digests[layout] == whole.digests[layout], layout
