"""Fine-tuning on several processes: same batches, same curve, same predictions, same early end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.equivalence.test_data_parallel import LOSS_TOLERANCE, NORM_TOLERANCE
from tests.helpers.command import curve, metrics, succeed
from tests.helpers.tasks import write_classification, write_entities

SETTINGS = ["train.batch_size=8", "train.sequence_length=48", "launch.threads=1", "compile=never"]
EXACT = ["precision=fp32", "dropout=0.0", "log.every=1"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    words = ["model=bert/debug", "objective=mlm", "data=text", f"data.paths=[{sentences}]", "train.steps=3"]
    succeed(
        "pretrain", *words, "tokenizer.vocab_size=120", f"run.dir={folder / 'run'}", *SETTINGS, cwd=folder
    )
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_weights_of_classes_frozen_layers_and_early_ends(kind, encoder, tmp_path):
    """77 examples leave part of a batch over in each epoch, and evaluations with rows that only fill."""
    if kind == "classification":
        examples = write_classification(tmp_path / "train.tsv", 77)
        words = ["task.balance=true", "optim.layer_decay=0.8"]
    else:
        examples = write_entities(tmp_path / "train.txt", 77)
        words = ["task.class_weights=[0.2,1,2,1,0.5]", 'optim.freeze=["backbone.embedding*"]']
    words += [f"task={kind}/custom", f"task.paths=[{examples}]", f"init_from={encoder}"]
    length = ["train.steps=30", "eval.every=4", "eval.patience=2", "optim.lr=1e-4"]
    runs = []
    for name, more in (("single", []), ("two", ["launch.num_processes=2", "train.micro_batch_size=2"])):
        run = [f"run.dir={tmp_path / name}", *words, *length, *SETTINGS, *EXACT, *more]
        succeed("finetune", *run, cwd=tmp_path)
        runs.append(tmp_path / name)

    expected, actual = (curve(run) for run in runs)
    assert [step for step, *_ in actual] == [step for step, *_ in expected]
    for (_, loss, norm), (_, other_loss, other_norm) in zip(expected, actual, strict=True):
        assert other_loss == pytest.approx(loss, rel=LOSS_TOLERANCE)
        assert other_norm == pytest.approx(norm, rel=NORM_TOLERANCE)
    for one, other in zip(*(metrics(run, "validation") for run in runs), strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert other == pytest.approx(one, rel=1e-5)
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    for key in ("steps", "best_step", "ended_early", "finished"):
        assert summaries[0][key] == summaries[1][key], key
    one, other = ((run / "predictions.jsonl").read_text().splitlines() for run in runs)
    assert [json.loads(line).get("text") for line in one] == [json.loads(line).get("text") for line in other]
    assert len(one) == 7
