"""Converting there and back: what is written says the same, or nothing is written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import transformers

from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.data.batch import Batch
from llmtrain.recipe import convert as recipe
from llmtrain.recipe.checkpointed import open_checkpoint, open_pretrained, saved_weights
from llmtrain.recipe.conversion import largest_deviation
from llmtrain.utils.errors import ConfigError, DataError
from tests.helpers.recipes import TINY, call, context
from tests.helpers.tasks import write_classification

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT of ours for transformers."""
    target = tmp_path_factory.mktemp("convert") / "hf"
    assert call("convert", f"source={decoder}", f"target={target}") == 0
    return target


@pytest.fixture(scope="module")
def imported(exported: Path) -> Path:
    """And back."""
    target = exported.with_name("back")
    assert call("convert", f"source={exported}", f"target={target}") == 0
    return target


@torch.no_grad()
def test_a_gpt_runs_in_transformers(decoder, exported, capsys):
    ours = open_checkpoint(str(decoder), context(), CPU)
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not told["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    text = "the cat sees two apples and a quiet song"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ours.tokenizer.encode(text).tolist()
    expected = theirs.eval()(input_ids=ids).logits
    torch.testing.assert_close(ours.model.predict(Batch(ids)), expected, rtol=1e-5, atol=1e-5)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == ours.tokenizer.end_id
    assert tokenizer.eos_token == ours.tokenizer.end_token


def test_the_card_tells_what_is_known_and_no_place(exported, decoder, sentences):
    card = (exported / "README.md").read_text()
    state = json.loads(next(decoder.glob("checkpoints/step-*/state.json")).read_text())
    for told in ("GPT2LMHeadModel", "license: unknown", "causal", sentences.name):
        assert told in card
    assert f"| tokens seen | {state['train']['tokens']:,} |" in card
    assert str(sentences.parent) not in card
    assert str(decoder.parent) not in card


def test_it_comes_back_as_a_checkpoint(decoder, imported, exported):
    original, back = (
        open_checkpoint(str(decoder), context(), CPU),
        open_checkpoint(str(imported), context(), CPU),
    )
    direct = open_checkpoint(str(exported), context(), CPU)
    for one in (back, direct):
        assert one.model_config == original.model_config
        assert one.tokenizer.sha256 == original.tokenizer.sha256
        for name, parameter in original.model.named_parameters():
            assert one.model.get_parameter(name).equal(parameter)


def test_it_is_evaluated_and_trained_on_like_the_original(
    decoder, imported, exported, sentences, capsys, tmp_path
):
    text = ["data=text", f"data.paths=[{sentences}]", "data.documents=paragraph", "sequence_length=32"]
    losses = []
    for source in (decoder, imported, exported):
        capsys.readouterr()
        call("evaluate", f"init_from={source}", *text)
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(ConfigError, match="there is no text with it"):
        call("evaluate", f"init_from={exported}")
    words = [
        f"data.paths=[{sentences}]",
        "data.documents=paragraph",
        "tokenizer=file",
        f"tokenizer.path={exported}",
    ]
    start = [f"init_from={exported}", "model=gpt/debug", "data=text", *words, *TINY]
    assert call("pretrain", *start, run=tmp_path / "more") == 0


def test_it_says_how_to_pretrain_further(sentences, exported, tmp_path, capsys):
    """A model with settings of every kind, trained on by the words that were printed."""
    scaling = ["model.rotary_scaling.method=linear", "model.rotary_scaling.factor=2"]
    shape = ["model.position=rotary", "model.norm=rmsnorm", "model.activation=swiglu", "model.bias=false"]
    more = [
        "model.query_key_norm=true",
        "model.head_dim=8",
        "model.hidden_dim=80",
        "model.tie_embeddings=false",
        *scaling,
    ]
    data = ["data=text", f"data.paths=[{sentences}]", "data.documents=paragraph"]
    tokens = ["tokenizer=file", f"tokenizer.path={exported}"]
    run = tmp_path / "run"
    call("pretrain", "model=gpt/debug", *shape, *more, *data, *tokens, *TINY, run=run)
    call("convert", f"source={run}", f"target={tmp_path / 'hf'}")
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "qwen3"
    capsys.readouterr()
    call("convert", f"source={tmp_path / 'hf'}", f"target={tmp_path / 'back'}")
    said = capsys.readouterr().out.replace("\n", " ")
    words = shlex.split(said.partition("llmtrain pretrain ")[2])[:-1]
    assert "model.head_dim=8" in words
    assert call("pretrain", *words, *data, *TINY, run=tmp_path / "further") == 0
    further = open_checkpoint(str(tmp_path / "further"), context(), CPU)
    assert further.model_config == open_checkpoint(str(run), context(), CPU).model_config


def test_a_foreign_encoder_with_a_task_starts_a_training(tuned, folder, tmp_path):
    call("convert", f"source={tuned}", f"target={tmp_path / 'hf'}")
    with pytest.raises(ConfigError, match="no head that predicts text"):
        open_checkpoint(str(tmp_path / "hf"), context(), CPU)
    call("convert", f"source={tmp_path / 'hf'}", f"target={tmp_path / 'back'}")
    theirs = open_pretrained(str(tmp_path / "back"), context())
    expected = saved_weights(open_pretrained(str(tuned), context()).path).read()
    assert theirs.weights().shapes == {name: tensor.shape for name, tensor in expected.items()}
    examples = write_classification(tmp_path / "train.tsv", 40)
    words = [f"init_from={tmp_path / 'back'}", f"task.paths=[{examples}]", *TINY]
    assert call("finetune", *words, run=tmp_path / "again") == 0


def test_half_precision_and_shards(decoder, tmp_path, capsys):
    words = ["dtype=bf16", "shard_size=0.00005"]
    call("convert", f"source={decoder}", f"target={tmp_path / 'hf'}", *words)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "deviate by at most" in said
    assert "at most 0 (" not in said
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 1
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_bin_files_are_converted_where_it_is_allowed(exported, tmp_path):
    held = transformers.AutoModelForCausalLM.from_pretrained(exported).state_dict()
    for file in exported.glob("*.json"):
        (tmp_path / "bin" / file.name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / file.name).write_bytes(file.read_bytes())
    torch.save(held, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="allow_bin=true"):
        call("convert", f"source={tmp_path / 'bin'}", f"target={tmp_path / 'hf'}", "format=hf")
    call("convert", f"source={tmp_path / 'bin'}", f"target={tmp_path / 'hf'}", "format=hf", "allow_bin=true")
    found, expected = read_hf(tmp_path / "hf").tensors, read_hf(exported).tensors
    assert all(found[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize("form", ["hf", "llmtrain"])
def test_a_deviation_leaves_nothing(form, decoder, exported, tmp_path, monkeypatch):
    said = recipe.outputs
    calls = []

    def outputs(*arguments):
        calls.append(arguments)
        return said(*arguments) + (len(calls) > 1) * 0.1

    monkeypatch.setattr(recipe, "outputs", outputs)
    source = exported if form == "llmtrain" else decoder
    with pytest.raises(DataError, match="says something else"):
        call("convert", f"source={source}", f"target={tmp_path / 'out'}", f"format={form}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_deviates(tmp_path):
    bad = torch.tensor([1.0, torch.nan])
    with pytest.raises(DataError, match="says something else"):
        largest_deviation(bad, bad, 1e-5, tmp_path)


def test_what_makes_no_sense_is_said(decoder, exported, tmp_path):
    with pytest.raises(ConfigError, match="is a checkpoint already"):
        call("convert", f"source={decoder}", f"target={tmp_path / 'out'}", "format=llmtrain")
    with pytest.raises(ConfigError, match="is there already"):
        call("convert", f"source={decoder}", f"target={exported}")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        call("convert", f"source={tmp_path / 'nowhere'}", f"target={tmp_path / 'out'}")
