"""Fine-tuning as a user does it: every task learns, scores are kept, predictions need no data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command import llmtrain, metrics, succeed
from tests.helpers.tasks import SMALL, write_classification, write_entities, write_pairs, write_questions


def finetune(start: Path, run: Path, *words: str) -> dict:
    settings = [f"init_from={start}", f"run.dir={run}", "optim.lr=2e-3", "dropout=0.0", *SMALL]
    succeed("finetune", *settings, *words, cwd=run.parent)
    return json.loads((run / "summary.json").read_text())


def files(folder: Path, write, ending: str, train: int, validate: int) -> list[str]:
    training = write(folder / f"train.{ending}", train)
    validation = write(folder / f"valid.{ending}", validate, seed=1)
    return [f"task.paths=[{training}]", f"task.validation_paths=[{validation}]"]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "decoder"])
def test_classification(start, tmp_path, request):
    training = write_classification(tmp_path / "train.tsv", 400)
    validation = write_classification(tmp_path / "valid.tsv", 100, seed=1)
    run = tmp_path / "run"
    paths = [f"task.paths=[{training}]", f"task.validation_paths=[{validation}]"]
    summary = finetune(request.getfixturevalue(start), run, *paths, "train.epochs=4")
    assert summary["metric"] == "accuracy"
    assert summary["best_validation_accuracy"] > 0.95  # one half is the larger class

    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    truth = [line.split("\t") for line in validation.read_text().splitlines()[1:]]
    assert [one["text"] for one in predictions] == [text for text, _ in truth]
    right = sum(one["label"] == label for one, (_, label) in zip(predictions, truth, strict=True))
    assert right / len(truth) == pytest.approx(summary["best_validation_accuracy"])

    evaluated = json.loads(succeed("evaluate", f"init_from={run}", cwd=tmp_path))
    assert evaluated["accuracy"] == pytest.approx(summary["best_validation_accuracy"], abs=0.011)

    training.unlink()
    validation.unlink()
    (tmp_path / "new.txt").write_text("the cat paints the river\nno machine counts many stars\n")
    lines = succeed("predict", f"init_from={run}", f"input={tmp_path / 'new.txt'}", cwd=tmp_path).splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["action", "thought"]


@pytest.mark.slow
def test_a_number_for_a_pair(encoder, tmp_path):
    training, validation = (
        write_pairs(tmp_path / "train.tsv", 600),
        write_pairs(tmp_path / "dev.tsv", 100, seed=1),
    )
    columns = ["text_column=first", "pair_column=second", "label_column=score", "target=number"]
    words = [f"task.{column}" for column in columns] + ["task.metric=pearson"]
    paths = [f"task.paths=[{training}]", f"task.validation_paths=[{validation}]"]
    summary = finetune(encoder, tmp_path / "run", *words, *paths, "train.epochs=10")
    assert summary["best_validation_pearson"] > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("start", ["encoder", "decoder"])
def test_entities(start, tmp_path, request):
    words = ["task=token_classification/custom", *files(tmp_path, write_entities, "txt", 300, 60)]
    summary = finetune(request.getfixturevalue(start), tmp_path / "run", *words, "train.epochs=5")
    assert summary["best_validation_f1"] > 0.9
    (tmp_path / "new.txt").write_text("my aunt forgets two apples\n")
    line = succeed("predict", f"init_from={tmp_path / 'run'}", f"input={tmp_path / 'new.txt'}", cwd=tmp_path)
    assert [entity["text"] for entity in json.loads(line)["entities"]] == ["my aunt", "two apples"]


@pytest.mark.slow
def test_questions(encoder, tmp_path):
    words = ["task=question_answering/custom", *files(tmp_path, write_questions, "json", 300, 40)]
    more = ["train.epochs=11", "task.stride=8"]
    summary = finetune(encoder, tmp_path / "run", *words, *more)
    assert summary["best_validation_f1"] > 0.6  # two names to choose from, and words around them


@pytest.mark.slow
def test_training_stops_early_and_a_finished_run_stays_finished(encoder, tmp_path):
    training = write_classification(tmp_path / "train.tsv", 200)
    words = [f"task.paths=[{training}]", "eval.every=5", "eval.patience=3", "train.steps=400"]
    summary = finetune(encoder, tmp_path / "run", *words)
    assert summary["finished"]
    found = {one["step"]: one["validation_accuracy"] for one in metrics(tmp_path / "run", "validation")}
    first = next(step for step, score in found.items() if score == max(found.values()))
    assert max(found) == summary["steps"] == first + 15 < 400
    assert first <= summary["best_step"]  # a later one with a lower loss
    assert "finished already" in succeed(
        "finetune",
        f"init_from={encoder}",
        f"run.dir={tmp_path / 'run'}",
        "optim.lr=2e-3",
        "dropout=0.0",
        *SMALL,
        *words,
        cwd=tmp_path,
    )


@pytest.mark.slow
def test_what_a_user_may_get_wrong(encoder, decoder, tmp_path):
    training = write_classification(tmp_path / "train.tsv", 40)
    start = ["finetune", f"init_from={encoder}", f"run.dir={tmp_path / 'run'}", *SMALL]
    for words, code, message in (
        ([f"task.paths=[{training}]", "task.label_column=lable"], 3, "did you mean 'label'"),
        ([f"task.paths=[{tmp_path / 'trian.tsv'}]"], 3, "did you mean"),
        ([f"task.paths=[{training}]", "task.metric=pearson"], 2, "no score 'pearson'"),
        ([f"task.paths=[{training}]", "train.sequence_length=100000"], 2, "positions of the model"),
        ([f"task.paths=[{training}]", "optim.freeze=[backbone.block.*]"], 2, "no parameter matches"),
    ):
        done = llmtrain(*start, *words, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        assert message in done.stderr, done.stderr
        assert done.stderr.count("error:") == 1
        assert "Traceback" not in done.stderr
    done = llmtrain("predict", f"init_from={encoder}", f"input={training}", cwd=tmp_path)
    assert done.returncode == 2
    assert "trained for no task" in done.stderr
    done = llmtrain("generate", f"init_from={encoder}", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not generate text" in done.stderr
