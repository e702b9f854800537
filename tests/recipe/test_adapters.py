"""LoRA runs: what they save, how they go on, and what is made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmtrain.adapt.lora import add_adapters
from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.read import resolve
from llmtrain.model.build import build_model, materialise
from llmtrain.model.layers.lora import is_adapter
from llmtrain.recipe.checkpointed import (
    load_weights,
    open_checkpoint,
    open_pretrained,
    saved_weights,
)
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import read_json
from tests.helpers.models import random_batch
from tests.helpers.recipes import TINY, call, context, pretrain
from tests.helpers.tasks import write_classification

CPU = torch.device("cpu")


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.fixture(scope="module")
def words(folder: Path, encoder: Path) -> list[str]:
    examples = write_classification(folder / "adapted.tsv", 60)
    return [
        *[f"init_from={encoder}", f"task.paths=[{examples}]", *TINY, "adapt=lora", "adapt.rank=2"],
        *["adapt.dropout=0.1", "train.steps=10", "checkpoint.best=false", "eval.every=0", "optim.lr=0.01"],
    ]


@pytest.fixture(scope="module")
def adapted(folder: Path, words: list[str]) -> Path:
    assert call("finetune", *words, "checkpoint.every=5", "checkpoint.keep=5", run=folder / "lora") == 0
    return folder / "lora"


def test_a_checkpoint_holds_adapters_and_the_new_head_only(adapted: Path, encoder: Path) -> None:
    names = set(tensors_of(resolve(adapted)))
    model = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert {name for name in model if not is_adapter(name)} == {
        "head.classifier.weight",
        "head.classifier.bias",
    }
    assert len(model) == 2 + 2 * 6 * 2  # A and B of six layers in each of two blocks
    state = {name.rpartition(".")[0] for name in names if name.startswith("optimizer.")}
    assert state == {f"optimizer.{name}" for name in model}
    record = read_json(resolve(adapted) / "base.json")
    assert Path(record["path"]) == resolve(encoder)


def test_a_run_goes_on_bit_by_bit(adapted: Path, words: list[str], folder: Path) -> None:
    again = folder / "again"
    shutil.copytree(adapted, again)
    shutil.rmtree(again / "checkpoints" / "step-00000010")
    assert call("finetune", *words, run=again) == 0
    step = "checkpoints/step-00000010"
    before, after = tensors_of(adapted / step), tensors_of(again / step)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_what_is_opened_is_base_and_adapters(adapted: Path, encoder: Path) -> None:
    """The oracle keeps them apart."""
    found = open_checkpoint(str(adapted), context(), CPU)
    assert not any(map(is_adapter, dict(found.model.named_parameters())))
    assert isinstance(found.config.adapt, LoRAConfig)
    apart = build_model(found.model_config, found.objective.build_head)
    add_adapters(apart, found.config.adapt)
    materialise(apart, CPU)
    own = saved_weights(found.path)
    base = open_pretrained(str(encoder), context()).weights()
    carried = {name for name in base.shapes if name.startswith(("backbone.", "head.pooler."))}
    load_weights(apart, base, encoder, carried, required=())
    load_weights(apart, own, adapted, set(own.shapes), required=())
    apart.eval()
    batch = random_batch(vocab=100, length=20)
    batch.first = torch.zeros((2, 1), dtype=torch.int64)
    with torch.inference_mode():
        torch.testing.assert_close(found.model.predict(batch), apart.predict(batch), rtol=1e-5, atol=1e-6)
    changed = dict(found.model.named_parameters())["backbone.blocks.0.mlp.up.weight"]
    plain = dict(apart.named_parameters())["backbone.blocks.0.mlp.up.weight"]
    assert (changed - plain).abs().max() > 1e-4


def test_it_is_evaluated_as_it_was_validated(adapted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert call("evaluate", f"init_from={adapted}") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["loss"] == pytest.approx(read_json(adapted / "summary.json")["validation_loss"], rel=1e-5)


def test_another_run_starts_from_it(adapted: Path, folder: Path, words: list[str]) -> None:
    """A second stage: the base of its adapters is the first with its adapters."""
    second = [one for one in words if not one.startswith(("init_from", "train.steps"))]
    run = folder / "second"
    assert call("finetune", f"init_from={adapted}", *second, "train.steps=1", run=run) == 0
    assert Path(read_json(resolve(run) / "base.json")["path"]) == resolve(adapted)
    open_checkpoint(str(run), context(), CPU)


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_a_base_that_is_not_what_it_was_is_refused(
    encoder: Path, sentences: Path, words: list[str], tmp_path: Path, what: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(encoder, base)
    here = [f"init_from={base}" if one.startswith("init_from") else one for one in words]
    run = tmp_path / "run"
    assert call("finetune", *here, "train.steps=1", run=run) == 0
    shutil.rmtree(base)
    if what == "changed":
        pretrain(base, sentences, "model=bert/debug", "objective=mlm_nsp", "run.seed=1")
    for verb in (
        lambda: call("finetune", *here, "train.steps=2", run=run),
        lambda: call("evaluate", f"init_from={run}"),
    ):
        with pytest.raises(ConfigError, match=f"belong to (is|has) {what}"):
            verb()


def test_only_what_can_be_adapted_is_adapted(adapted: Path, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no linear layer of the blocks matches"):
        call("finetune", *words, "adapt.targets=[attention.qery]", run=tmp_path / "run")
    with pytest.raises(ConfigError, match="reinitialise"):
        call("finetune", *words, "reinitialise=true", run=tmp_path / "run")


def test_adapters_are_converted_by_themselves_and_folded_in(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way there and back: what is folded in from PEFT's files is what is folded in here."""
    base = read_json(resolve(adapted) / "base.json")["path"]
    assert call("convert", f"source={adapted}", f"target={tmp_path / 'peft'}") == 0
    assert read_json(tmp_path / "peft" / "adapter_config.json")["modules_to_save"] == ["classifier"]
    assert call("convert", f"source={adapted}", f"target={tmp_path / 'hf'}", "merge=true") == 0
    words = [f"source={tmp_path / 'peft'}", f"target={tmp_path / 'again'}", "format=hf", f"base={base}"]
    assert call("convert", *words) == 0
    ours, again = (read_hf(tmp_path / name).tensors for name in ("hf", "again"))
    for name in ours:
        if name.startswith("backbone."):
            torch.testing.assert_close(again[name], ours[name], rtol=1e-6, atol=1e-7)
    for wrong, what in (
        ([f"source={base}", "merge=true"], "no adapters to fold in"),
        ([f"source={base}", "format=peft"], "not a checkpoint with adapters"),
        ([f"source={adapted}", "format=peft", "merge=true"], "leave one of them out"),
    ):
        with pytest.raises(ConfigError, match=what):
            call("convert", *wrong, f"target={tmp_path / 'none'}")


def test_pretraining_goes_on_with_adapters(decoder: Path, sentences: Path, tmp_path: Path) -> None:
    """On more text; there is no new head, so nothing but adapters is learned and saved."""
    words = [f"init_from={decoder}", "model=gpt/debug", "data=text", f"data.paths=[{sentences}]", *TINY]
    words += ["tokenizer=file", f"tokenizer.path={resolve(decoder) / 'tokenizer.json'}", "adapt=lora"]
    run = tmp_path / "run"
    assert call("pretrain", *words, run=run) == 0
    assert call("pretrain", *words, "train.steps=3", run=run) == 0
    names = {name for name in tensors_of(resolve(run)) if name.startswith("model.")}
    assert names
    assert all(map(is_adapter, names))
    with pytest.raises(ConfigError, match="init_from is not set"):
        call("pretrain", *words[1:], run=tmp_path / "other")
