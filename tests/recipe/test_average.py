"""Runs with a moving average of the weights: what they save, how they go on, and what is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmtrain.checkpoint.read import resolve
from llmtrain.model.layers.lora import is_adapter
from llmtrain.recipe.checkpointed import open_checkpoint, open_pretrained, start_from
from tests.helpers.command import curve, metrics, validation_curve
from tests.helpers.recipes import TINY, call, context, pretrain
from tests.helpers.tasks import write_classification
from tests.helpers.trainings import LAYOUTS, Job, Visit, configure, load, train
from tests.parallel.test_checkpoints import merged, run_in

CPU = torch.device("cpu")
DECAY = "optim.ema=0.9"


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.fixture(scope="module")
def words() -> list[str]:
    data = ["data.validation_fraction=0.1", "train.steps=6", "checkpoint.every=3", "checkpoint.keep=9"]
    return ["model=gpt/debug", "model.dropout=0.1", *data, "eval.every=0", "optim.lr=0.01", DECAY]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sentences: Path, words: list[str]) -> Path:
    return pretrain(tmp_path_factory.mktemp("average") / "run", sentences, *words)


def test_a_run_goes_on_bit_by_bit(run: Path, words: list[str], sentences: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again, symlinks=True)
    (again / "checkpoints" / "best").unlink()
    shutil.rmtree(again / "checkpoints" / "step-00000006")
    pretrain(again, sentences, *words)
    before, after = (tensors_of(one / "checkpoints" / "step-00000006") for one in (run, again))
    assert before.keys() == after.keys()
    assert before["averaged.steps"] == 6
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    averages = {name.removeprefix("average.") for name in before if name.startswith("average.")}
    assert averages == {name.removeprefix("model.") for name in before if name.startswith("model.")}


def test_evaluations_are_of_the_average(run: Path, capsys) -> None:
    """The loss in the log is that of the average that was saved, and not that of the weights."""
    assert call("evaluate", f"init_from={run}") == 0
    (record,) = metrics(run, "validation")
    told = capsys.readouterr()
    assert json.loads(told.out)["loss"] == pytest.approx(record["validation_loss"], rel=1e-6)
    assert "note: step-00000006: the moving average is taken" in told.err


def test_who_opens_it_gets_the_average(run: Path, tmp_path: Path, capsys) -> None:
    saved = tensors_of(resolve(run))
    opened = open_checkpoint(str(run), context(), CPU)
    for name, one in opened.model.named_parameters():
        assert torch.equal(one, saved[f"average.{name}"])
        assert not torch.equal(one, saved[f"model.{name}"])
    assert "the moving average is taken (optim.ema=0.9)" in opened.note
    pretrained = open_pretrained(str(run), context())
    for one in opened.model.parameters():
        torch.nn.init.zeros_(one)
    names = {name for name, _ in opened.model.named_parameters()}
    assert "moving average" in start_from(pretrained, opened.model, names)[0]
    assert torch.equal(opened.model.backbone.embedding.weight, saved["average.backbone.embedding.weight"])
    assert call("convert", f"source={run}", f"target={tmp_path / 'hf'}") == 0
    assert "the moving average is taken" in capsys.readouterr().out
    (file,) = (tmp_path / "hf").glob("*.safetensors")
    exported = load_file(file)
    embedding = next(value for name, value in exported.items() if "wte" in name or "embed_tokens" in name)
    real = saved["average.backbone.embedding.weight"][: len(embedding)]
    assert torch.equal(embedding, real)


def test_of_adapters_only_what_learns_is_averaged(
    run: Path, tmp_path: Path, folder: Path, encoder: Path
) -> None:
    examples = write_classification(tmp_path / "examples.tsv", 40)
    adapted = tmp_path / "adapted"
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", *TINY, "adapt=lora", "adapt.rank=2"]
    assert call("finetune", *words, "optim.lr=0.01", DECAY, run=adapted) == 0
    saved = tensors_of(resolve(adapted))
    averages = {name.removeprefix("average.") for name in saved if name.startswith("average.")}
    assert averages == {name.removeprefix("model.") for name in saved if name.startswith("model.")}
    assert {name for name in averages if not is_adapter(name)} == {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    opened = open_checkpoint(str(adapted), context(), CPU)
    assert torch.equal(opened.model.head.classifier.bias, saved["average.head.classifier.bias"])


SHAPE = [
    *["experiment=debug", "model.num_layers=4", "model.num_heads=4", "model.num_kv_heads=4"],
    *["model.tie_embeddings=true", "model.vocab_multiple=2", "data=text", "data.documents=paragraph"],
    *["data.validation_fraction=0.05", "train.batch_size=16", "train.sequence_length=32", "precision=fp32"],
    *["compile=never", "checkpoint.every=0", "log.every=1", "eval.every=4", "train.steps=8", DECAY],
]


@pytest.mark.equivalence
def test_layouts_take_it_over_from_each_other_and_find_the_same(tmp_path: Path, sentences: Path) -> None:
    """Curves with evaluations of the average are those of one process; its bits are the same everywhere."""
    words = [*SHAPE, f"data.paths=[{sentences}]"]
    configs = {name: configure(name, *words) for name in LAYOUTS}
    runs = {name: tmp_path / name for name in LAYOUTS}
    held = {}
    for name, (world, _) in LAYOUTS.items():
        by_rank = run_in(world, tmp_path, train, [Job(configs[name], runs[name], 8)])
        held[name] = merged(one for (one,) in by_rank)
    for name, (world, _) in LAYOUTS.items():
        for told in (curve, validation_curve):
            for one, other in zip(told(runs["single"]), told(runs[name]), strict=True):
                assert other[:2] == pytest.approx(one[:2], rel=1e-6), name
        visit = Visit(configs[name], [runs["fsdp2-pp2"], runs["single"]])
        by_rank = run_in(world, tmp_path, load, [visit])
        for number, source in enumerate(("fsdp2-pp2", "single")):
            assert merged(one[0][number] for one in by_rank) == held[source], name
