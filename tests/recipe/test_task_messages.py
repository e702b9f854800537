"""What fine-tuning and predicting say about examples that a model does not get to see as they are."""

from __future__ import annotations

import json
import re

import pytest

from llmtrain.compose.compose import compose
from llmtrain.recipe.finetune import only_answer, show_scores
from llmtrain.recipe.scoring import write_predictions
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import write_json
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.worker import DRY_RUNS
from tests.helpers.command import metrics
from tests.helpers.recipes import TINY, call, context
from tests.helpers.tasks import write_classification, write_questions


def test_much_unknown_text_is_told(encoder, tuned, tmp_path, capsys):
    known, unknown = "the cat sees the river\tb\n", "\u4f60\u597d\ta\n"
    examples = tmp_path / "train.tsv"
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", *TINY]
    for number, (lines, told) in enumerate(((known * 30 + unknown * 3, False), (known + unknown * 15, True))):
        examples.write_text("text\tlabel\n" + lines)
        call("finetune", *words, run=tmp_path / f"run{number}")
        message = "of the tokens are unknown to the tokenizer of the model"
        assert (message in capsys.readouterr().out) == told
    (tmp_path / "new.txt").write_text("\u4f60\u597d\n")
    call("predict", f"init_from={tuned}", f"input={tmp_path / 'new.txt'}")
    assert "warning: 50.0 % of the tokens are unknown" in capsys.readouterr().err


def test_too_few_examples_to_hold_some_out_are_told(encoder, tmp_path, capsys):
    examples = tmp_path / "train.tsv"
    examples.write_text("text\tlabel\n" + "".join(f"the cat {i}\t{1000 * i}\n" for i in range(6)))
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", "task.target=number", *TINY]
    call("finetune", *words, run=tmp_path / "run")
    shown = capsys.readouterr().out
    assert "task.validation_fraction=0.1 of 6 examples is none: there will be no scores" in shown


def test_what_is_cut_is_told_once_and_in_each_prediction(encoder, tmp_path, capsys):
    examples = write_classification(tmp_path / "train.tsv", 30)
    with open(examples, "a") as file:
        file.write("the cat " * 60 + "\taction\n")
    validation = write_classification(tmp_path / "dev.tsv", 5, seed=1)
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", f"task.validation_paths=[{validation}]"]
    call("finetune", *words, *TINY, run=tmp_path / "run")
    told = "examples cut to train.sequence_length=48: 1, the longest of 122 tokens"
    assert capsys.readouterr().out.count(told) == 1
    (tmp_path / "new.txt").write_text("the cat\n" + "the cat " * 60 + "\n")
    call("predict", f"init_from={tmp_path / 'run'}", f"input={tmp_path / 'new.txt'}")
    shown = capsys.readouterr()
    assert shown.err.count(told) == 1
    whole, cut = map(json.loads, shown.out.splitlines())
    assert "cut_tokens" not in whole
    assert cut["cut_tokens"] == 122 - 48


def test_long_questions_are_told(encoder, tmp_path, capsys):
    examples = write_questions(tmp_path / "train.json", 8)
    words = [f"init_from={encoder}", f"task.paths=[{examples}]", "task=question_answering/custom", *TINY]
    (composed,) = compose("finetune", [*words, "task.max_question_length=2"])
    assert DRY_RUNS["finetune"](composed.config, context()) == 0
    told = r"questions cut to task.max_question_length=2: 15, the longest of \d+ tokens"
    assert re.search(told, capsys.readouterr().out)


@pytest.mark.parametrize(("verb", "key"), [("predict", "input={}"), ("evaluate", "paths=[{}]")])
def test_a_file_that_is_not_there_is_guessed(verb, key, tuned, tmp_path):
    there = write_classification(tmp_path / "new.tsv", 5)
    for wrong, fix in ((tmp_path / "nwe.tsv", f"did you mean {there}?"), (tmp_path, "name a file in it")):
        with pytest.raises(DataError) as caught:
            call(verb, f"init_from={tuned}", key.format(wrong))
        (problem,) = caught.value.problems
        assert (problem.where, problem.fix) == (key.partition("=")[0], fix)


def test_a_model_that_says_the_same_of_everything_is_told(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    write_json(run.scores, {"scores": {"loss": 1.0}, "tables": []})
    for labels, told in (("aa", True), ("ab", False)):
        predictions = [{"label": label, "expected": true} for label, true in zip(labels, "ab", strict=True)]
        write_predictions(run.predictions, predictions)
        show_scores(run, {"best_step": 3})
        assert ("hint: all predictions are a: train longer" in capsys.readouterr().out) == told


def test_what_counts_as_the_same():
    for expected, *predictions in (
        ("a", {"label": "a", "expected": "a"}, {"label": "a", "expected": "b"}),
        (None, {"label": "a", "expected": "a"}, {"label": "b", "expected": "b"}),
        (None, {"label": "a", "expected": "a"}, {"label": "a", "expected": "a"}),
        ("without a label", {"labels": [], "expected": []}, {"labels": [], "expected": ["a"]}),
        (None, {"labels": ["a", "b"], "expected": ["b", "a"]}),
        ("O", {"tags": ["O", "O"], "expected": ["O", "B-X"]}, {"tags": ["O"], "expected": ["O"]}),
        (None, {"tags": ["O", "B-X"], "expected": ["O", "O"]}),
        (None, {"number": 1.0, "expected": 2.0}, {"number": 1.0, "expected": 3.0}),
        (None, {"answer": "", "expected": ["a"]}),
        (None,),
    ):
        assert only_answer(predictions) == expected


def test_a_single_validation_document_is_no_reason_to_refuse_next_sentences(sentences, tmp_path, capsys):
    paths = [f"data.paths=[{sentences}]", f"data.validation_paths=[{tmp_path / 'dev.txt'}]"]
    (tmp_path / "dev.txt").write_text(sentences.read_text()[:6000].replace("\n\n", "\n"))
    words = [
        "data=text",
        "data.documents=paragraph",
        *paths,
        "tokenizer=wordpiece",
        "tokenizer.vocab_size=120",
    ]
    call("pretrain", *words, "model=bert/debug", "objective=mlm_nsp", *TINY, run=tmp_path / "run")
    assert "warning    the text to validate on is a single document" in capsys.readouterr().out
    assert 0 < metrics(tmp_path / "run", "validation")[-1]["validation_nsp_accuracy"] < 1
    own = ["data=text", f"data.paths=[{tmp_path / 'dev.txt'}]"]
    assert call("evaluate", f"init_from={tmp_path / 'run'}", *own) == 0
    assert "warning: the text to validate on is a single document" in capsys.readouterr().err
