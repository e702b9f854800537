"""Fine-tuning, evaluating, predicting, converting: the recipes in this process, on models of two steps."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import torch

from llmtrain.checkpoint.hf.read import read_hf
from llmtrain.checkpoint.read import resolve
from llmtrain.compose.compose import compose
from llmtrain.model.heads.examples import SampleHead
from llmtrain.model.heads.vocabulary import MaskedHead
from llmtrain.recipe.checkpointed import (
    CARRIED,
    open_checkpoint,
    open_pretrained,
    saved_weights,
    start_from,
)
from llmtrain.utils.errors import ConfigError, DataError, ExitCode, Stopped
from llmtrain.worker import DRY_RUNS, RECIPES
from tests.helpers.command import metrics
from tests.helpers.models import make_model
from tests.helpers.recipes import TINY, call, context
from tests.helpers.tasks import SMALL, write_classification, write_entities, write_questions


def test_longer_rows_than_the_model_has_positions_are_refused(tuned):
    with pytest.raises(ConfigError, match="longer than the 128 positions"):
        call("evaluate", f"init_from={tuned}", "sequence_length=129")


def test_what_was_held_out_is_evaluated_only_if_it_is_known(tuned, folder, encoder, tmp_path, capsys):
    examples = write_classification(tmp_path / "train.tsv", 40)
    run = tmp_path / "run"
    call("finetune", f"init_from={encoder}", f"task.paths=[{examples}]", *TINY, run=run)
    capsys.readouterr()
    assert call("evaluate", f"init_from={run}") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["examples"] == 4
    assert scores["loss"] == pytest.approx(metrics(run, "validation")[-1]["validation_loss"], rel=1e-5)
    write_classification(examples, 50)
    with pytest.raises(ConfigError, match="not known any more"):
        call("evaluate", f"init_from={run}")
    assert call("evaluate", f"init_from={run}", f"paths=[{examples}]") == 0


@pytest.mark.parametrize("setting", ["paths=[train.tsv]", "output=predictions.jsonl"])
def test_a_language_model_is_not_evaluated_on_examples(encoder, setting):
    with pytest.raises(ConfigError, match="on a text, not on examples"):
        call("evaluate", f"init_from={encoder}", setting)


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize(("output", "message"), [("none/a.jsonl", "no folder"), ("", "is a folder")])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(verb, output, message, tuned, tmp_path):
    words = ["input=nothing.txt"] if verb == "predict" else ["paths=[nothing.tsv]"]
    with pytest.raises(ConfigError, match=message):
        call(verb, f"init_from={tuned}", f"output={tmp_path / output}", *words)


def test_predictions_stand_in_the_order_of_the_lines(tuned, tmp_path):
    lines = ["cat", "the cat sees the river and the old captain", "", "my aunt counts", "dog"] * 5
    (tmp_path / "new.txt").write_text("\n".join(lines) + "\n")
    for size in (1, 4, 100):
        words = [
            f"input={tmp_path / 'new.txt'}",
            f"output={tmp_path / f'{size}.jsonl'}",
            f"batch_size={size}",
        ]
        assert call("predict", f"init_from={tuned}", *words) == 0
    one, four, all_ = (
        [json.loads(line) for line in (tmp_path / f"{size}.jsonl").read_text().splitlines()]
        for size in (1, 4, 100)
    )
    assert [prediction["text"] for prediction in one] == lines
    for other in (four, all_):
        assert [prediction["text"] for prediction in other] == lines
        for ours, theirs in zip(other, one, strict=True):
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
    assert one[0]["probabilities"] != one[1]["probabilities"]


def test_standard_input_is_read_as_bytes(tuned, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\ncaf\xe9\n"), encoding="utf-8"))
    with pytest.raises(DataError, match="UTF-8") as caught:
        call("predict", f"init_from={tuned}", "input=-")
    assert caught.value.problems[0].where.endswith(":2")


def test_tags_that_training_did_not_know_count_as_missed_in_evaluate_too(encoder, tmp_path, capsys):
    known = write_entities(tmp_path / "train.txt", 20)
    words = ["task=token_classification/custom", f"task.paths=[{known}]"]
    call("finetune", f"init_from={encoder}", *words, *TINY, run=tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text(known.read_text() + "\nrome x B-PLACE\n")
    capsys.readouterr()
    assert call("evaluate", f"init_from={tmp_path / 'run'}", f"paths=[{other}]") == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 21


def test_a_decoder_that_was_trained_for_a_task_does_not_generate(decoder, tmp_path):
    examples = write_classification(tmp_path / "train.tsv", 20)
    call("finetune", f"init_from={decoder}", f"task.paths=[{examples}]", *TINY, run=tmp_path / "run")
    with pytest.raises(ConfigError, match="was trained for a task"):
        call("generate", f"init_from={tmp_path / 'run'}")


def names_of(model):
    return {name for name, _ in model.named_parameters()}


def test_weights_are_told_that_are_missing_not_used_or_unknown(tuned):
    pretrained = open_pretrained(str(tuned), context())
    pretrained.unknown = ["bert.extra"]
    model = make_model(pretrained.model, build_head=MaskedHead)
    new, unused, unknown = start_from(pretrained, model, names_of(model))
    name = resolve(tuned).name
    assert new.startswith(f"not in {name}, drawn anew: head.masked.dense.bias, ")
    assert unused.startswith(f"not used of {name}: head.classifier.bias, head.classifier.weight, head.pooler")
    assert unknown == f"unknown in {name}: bert.extra"


def test_only_what_is_carried_is_taken_over(tuned):
    """Another fine-tuned run gives its backbone and pooler, not its classifier."""
    pretrained = open_pretrained(str(tuned), context())
    model = make_model(pretrained.model, seed=1, build_head=lambda backbone: SampleHead(backbone, 2))
    first = model.head.classifier.weight.clone()
    told = start_from(pretrained, model, names_of(model), CARRIED)
    assert [line.partition(": ")[2] for line in told] == ["head.classifier.bias, head.classifier.weight"] * 2
    assert model.head.classifier.weight.equal(first)
    theirs = saved_weights(pretrained.path).read()
    assert model.head.pooler.dense.weight.equal(theirs["head.pooler.dense.weight"])


def test_classes_travel_to_transformers(tuned, encoder, folder, tmp_path):
    examples = folder / "train.tsv"
    call("convert", f"source={tuned}", f"target={tmp_path / 'label'}")
    config = json.loads((tmp_path / "label/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "action", "1": "thought"}
    assert config["problem_type"] == "single_label_classification"

    several = [f"task.paths=[{examples}]", "task.target=labels", "task.metric=micro_f1"]
    call("finetune", f"init_from={encoder}", *several, *TINY, run=tmp_path / "several")
    call("convert", f"source={tmp_path / 'several'}", f"target={tmp_path / 'labels'}")
    config = json.loads((tmp_path / "labels/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"

    words = [f"task.paths=[{examples}]", "task.pool=last"]
    call("finetune", f"init_from={encoder}", *words, *TINY, run=tmp_path / "last")
    with pytest.raises(ConfigError, match="pool=last"):
        call("convert", f"source={tmp_path / 'last'}", f"target={tmp_path / 'no'}")
    assert not (tmp_path / "no").exists()


def test_weights_from_transformers_are_read_when_a_model_asks_for_them(encoder, tmp_path):
    call("convert", f"source={encoder}", f"target={tmp_path / 'hf'}")
    weights = open_pretrained(str(tmp_path / "hf"), context()).weights()
    expected = dict(read_hf(tmp_path / "hf").tensors)
    assert weights.shapes == {name: tensor.shape for name, tensor in expected.items()}
    blank = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    weights.fill(blank)
    assert all(blank[name].equal(expected[name]) for name in expected)


def test_a_run_goes_on_without_what_it_started_from_but_not_with_other_examples(encoder, tmp_path):
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(encoder, start, symlinks=True)
    examples = write_classification(tmp_path / "train.tsv", 40)
    words = [f"init_from={start}", f"task.paths=[{examples}]", "task.balance=true", *TINY[1:]]
    call("finetune", *words, "train.steps=2", run=run)
    shutil.rmtree(start)
    call("finetune", *words, "train.steps=4", run=run)
    assert [one["step"] for one in metrics(run)] == [2, 4]
    stored = open_checkpoint(str(run), context(), torch.device("cpu")).config.task
    assert stored.labels == ["action", "thought"]
    assert sum(stored.class_weights) == pytest.approx(2)
    assert not stored.balance
    with open(examples, "a") as file:
        file.write("a dog barks\tnoise\n")
    with pytest.raises(
        ConfigError, match="the data have changed since this run was started: training examples"
    ):
        call("finetune", *words, "train.steps=6", run=run)


def test_a_training_that_ended_early_says_how_to_go_on(encoder, tmp_path, capsys):
    examples = write_classification(tmp_path / "train.tsv", 40)
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", *TINY[1:], "optim.lr=1e-9", "eval.every=1"]
    call("finetune", *words, "train.steps=9", "eval.patience=1", run=tmp_path / "run")
    assert "the same command with a greater eval.patience trains on" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 2
    call("finetune", *words, "train.steps=3", "eval.patience=9", run=tmp_path / "run")
    assert "the same command with a greater length (now 3 steps) trains on" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["finetune", "predict", "evaluate"])
def test_a_stop_is_heard_before_the_first_batch(verb, encoder, tuned, folder, tmp_path):
    examples = folder / "train.tsv"
    words = {
        "finetune": [f"init_from={encoder}", f"task.paths=[{examples}]", *TINY],
        "predict": [f"init_from={tuned}", f"input={examples}"],
        "evaluate": [f"init_from={tuned}", f"paths=[{examples}]"],
    }
    (composed,) = compose(verb, words[verb])
    surroundings = context(tmp_path / "run")
    surroundings.stop.exit_code = ExitCode.TERMINATED
    with pytest.raises(Stopped) as stopped:
        RECIPES[verb](composed.config, surroundings)
    assert stopped.value.exit_code == ExitCode.TERMINATED
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_questions_come_from_standard_input_as_json_lines(encoder, tmp_path, monkeypatch, capsys):
    examples = write_questions(tmp_path / "train.json", 8)
    words = ["task=question_answering/custom", f"task.paths=[{examples}]"]
    call("finetune", f"init_from={encoder}", *words, *TINY, run=tmp_path / "run")
    capsys.readouterr()
    line = json.dumps({"question": "who sees it", "context": "the cat sees the river"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    assert call("predict", f"init_from={tmp_path / 'run'}", "input=-") == 0
    assert json.loads(capsys.readouterr().out)["question"] == "who sees it"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"who sees it\n")))
    with pytest.raises(DataError) as caught:
        call("predict", f"init_from={tmp_path / 'run'}", "input=-")
    assert caught.value.problems[0].where == "standard input:1"


def test_advice_on_files_leaves_out_what_cannot_be_changed_any_more(tuned, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("sentence,label\nthe cat,action\n")
    for verb, word in (("predict", f"input={other}"), ("evaluate", f"paths=[{other}]")):
        with pytest.raises(DataError, match="no column 'text'") as caught:
            call(verb, f"init_from={tuned}", word)
        fix = caught.value.problems[0].fix
        assert fix == 'give a file laid out as those of the training: text_column="text", header=true'
    other.write_text("text,label\nthe cat,noise\n")
    with pytest.raises(DataError, match="'noise' is not known") as caught:
        call("evaluate", f"init_from={tuned}", f"paths=[{other}]")
    assert caught.value.problems[0].fix == "known: action, thought; repair the row"


def test_dry_run_of_a_task_reads_the_examples(encoder, folder, tmp_path, capsys):
    examples = write_classification(tmp_path / "train.tsv", 60)
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", *SMALL, "optim.freeze=[backbone.*]"]
    (composed,) = compose("finetune", words)
    assert DRY_RUNS["finetune"](composed.config, context()) == 0
    shown = capsys.readouterr().out
    assert "54 examples to train on, 6 to validate" in shown
    assert "10 steps, 3.4 in an epoch" in shown
    assert "action, thought" in shown
    (composed,) = compose("finetune", [*words, "task.label_column=lable"])
    with pytest.raises(DataError, match="no column 'lable'"):
        DRY_RUNS["finetune"](composed.config, context())
