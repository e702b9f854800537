"""What a user does with an encoder besides tasks: evaluate, look at rows, hand over to other tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.command import llmtrain, metrics, succeed
from tests.helpers.tasks import SMALL, write_classification


@pytest.mark.slow
def test_evaluate_agrees_with_the_validation_of_the_run(encoder, tmp_path):
    result = json.loads(succeed("evaluate", f"init_from={encoder}", cwd=tmp_path))
    step = int(Path(result["checkpoint"]).resolve().name.removeprefix("step-"))
    validated = next(one for one in metrics(encoder, "validation") if one["step"] == step)
    for name in ("loss", "mlm_loss", "nsp_loss"):
        assert result[name] == pytest.approx(
            validated[f"validation_{name}"], rel=2e-2
        )  # fp32, maybe not bf16
    for name in ("labels", "samples"):
        assert result[name] == validated[f"validation_{name}"]
    assert "perplexity" not in result


@pytest.mark.slow
def test_both_tasks_are_learned(encoder):
    curve = metrics(encoder)
    assert curve[-1]["mlm_loss"] < curve[0]["mlm_loss"] - 0.5
    assert curve[-1]["loss"] == pytest.approx(curve[-1]["mlm_loss"] + curve[-1]["nsp_loss"], rel=1e-4)
    assert all(0.9 < one["real_tokens"] <= 1 for one in curve)


@pytest.mark.slow
def test_prepare_shows_masks_and_pairs(tmp_path, sentences):
    words = ["objective=mlm_nsp", "data=text", f"data.paths=[{sentences}]", "data.documents=paragraph"]
    more = ["tokenizer.vocab_size=120", "train.sequence_length=48", "show=2"]
    shown = succeed("prepare", *words, *more, cwd=tmp_path)
    assert "[MASK:" in shown
    assert "real tokens" in shown
    assert "b follows a" in shown or "b is random" in shown


@pytest.mark.slow
def test_there_and_back_again(encoder, tmp_path):
    """A directory for transformers gives the same scores there, and the same fine-tuning here."""
    target = tmp_path / "hf"
    assert "deviate by at most 0 " in succeed(
        "convert", f"source={encoder}", f"target={target}", cwd=tmp_path
    )
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForPreTraining.from_pretrained(target)
    assert isinstance(theirs, transformers.BertForPreTraining)
    ids = transformers.AutoTokenizer.from_pretrained(target)("the cat sees two apples", return_tensors="pt")
    with torch.no_grad():
        assert theirs(**ids).prediction_logits.isfinite().all()

    examples = write_classification(tmp_path / "train.tsv", 60)
    runs = []
    for name, start in (("ours", encoder), ("theirs", target)):
        words = [f"init_from={start}", f"task.paths=[{examples}]", "train.steps=6", "log.every=1", *SMALL]
        output = succeed("finetune", *words, "precision=fp32", f"run.dir={tmp_path / name}", cwd=tmp_path)
        assert "drawn anew: head.classifier" in output
        runs.append([one["loss"] for one in metrics(tmp_path / name)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)
    again = llmtrain("convert", f"source={encoder}", f"target={target}", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
