"""Numbers far from 0 are learned, predicted, scored and exported in their own unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from tests.helpers.command import metrics
from tests.helpers.recipes import TINY, call
from tests.helpers.tasks import write_numbers


def tune(encoder: Path, folder: Path, *words: str) -> Path:
    training, validation = write_numbers(folder / "a.tsv", 240), write_numbers(folder / "b.tsv", 60, seed=1)
    data = [f"task.paths=[{training}]", f"task.validation_paths=[{validation}]", "task.target=number"]
    data += ["task.label_column=number", f"init_from={encoder}", "dropout=0.0"]
    call("finetune", *data, *TINY[1:], *words, run=folder / "run")
    return folder / "run"


def test_they_are_learned(encoder: Path, tmp_path: Path) -> None:
    run = tune(encoder, tmp_path, "task.pool=mean", "optim.lr=3e-3", "train.epochs=4")
    settled = yaml.safe_load((run / "config.yaml").read_text())["task"]
    assert (settled["number_mean"], settled["number_scale"]) == pytest.approx((1000, 51), abs=4)
    variance = settled["number_scale"] ** 2
    scores = metrics(run, "validation")[-1]
    assert scores["validation_mean_squared_error"] < 0.4 * variance  # always the mean: 1
    assert scores["validation_loss"] == pytest.approx(scores["validation_mean_squared_error"] / variance)
    assert scores["validation_pearson"] > 0.8
    predictions = [
        json.loads(line)["number"] for line in (run / "predictions.jsonl").read_text().splitlines()
    ]
    assert 900 < min(predictions) < 980 < 1020 < max(predictions) < 1100


def test_predict_and_transformers_say_them_in_their_own_unit(encoder: Path, tmp_path: Path, capsys) -> None:
    run = tune(encoder, tmp_path, "train.steps=2")
    texts = ["the cat sees the river", "my aunt counts two apples"]
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n")
    capsys.readouterr()
    call("predict", f"init_from={run}", f"input={tmp_path / 'new.txt'}")
    numbers = [json.loads(line)["number"] for line in capsys.readouterr().out.splitlines()]
    assert numbers == pytest.approx([1000, 1000], abs=100)
    call("convert", f"source={run}", f"target={tmp_path / 'hf'}")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        logits = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
    assert logits.tolist() == pytest.approx(numbers, abs=0.01)
