"""What a user does after training: generate, evaluate, prepare, train on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import llmtrain, metrics, succeed, tensor_bytes


def train(text: Path, *more: str) -> list[str]:
    """Words of a small training."""
    return [
        "pretrain",
        "model=gpt/debug",
        "data=text",
        f"data.paths=[{text}]",
        "data.validation_fraction=0.1",
        "tokenizer=characters",
        "train.batch_size=16",
        "train.sequence_length=64",
        *more,
    ]


TRAINED = ["optim.lr=1e-2", "run.name=trained"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    output = succeed(*train(sentences, *TRAINED, "train.steps=60"), cwd=folder)
    assert "llmtrain generate init_from=runs/trained" in output
    return folder / "runs" / "trained"


@pytest.mark.slow
def test_generate_is_reproducible_and_starts_with_the_prompt(run):
    arguments = ["generate", f"init_from={run}", "prompt=The cat", "sample.max_new_tokens=30"]
    first = succeed(*arguments, "sample.num_samples=2", cwd=run)
    assert first.count("The cat") >= 2
    assert succeed(*arguments, "sample.num_samples=2", cwd=run) == first
    assert succeed(*arguments, "sample.num_samples=2", "sample.seed=1", cwd=run) != first


@pytest.mark.slow
def test_evaluate_agrees_with_the_validation_loss_of_the_run(run, tmp_path, sentences):
    result = json.loads(succeed("evaluate", f"init_from={run}", cwd=tmp_path))
    summary = json.loads((run / "summary.json").read_text())
    assert result["loss"] == pytest.approx(summary["best_validation_loss"], rel=5e-3)  # fp32, maybe not bf16
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(
        result["loss"] * result["tokens"] / result["bytes"] / math.log(2)
    )
    whole = json.loads(
        succeed("evaluate", f"init_from={run}", "data=text", f"data.paths=[{sentences}]", cwd=tmp_path)
    )
    # Every character is one byte; the first is not predicted, and the end of the document has no bytes.
    assert whole["bytes"] == sentences.stat().st_size - 1
    assert whole["tokens"] == sentences.stat().st_size


@pytest.mark.slow
def test_finished_run_tells_its_summary_and_trains_on_with_more_steps(run, sentences):
    folder = run.parent.parent
    same = train(sentences, *TRAINED)
    before = (run / "metrics.jsonl").read_text()
    assert "60" in succeed(*same, "train.steps=60", cwd=folder)
    assert (run / "metrics.jsonl").read_text() == before
    output = succeed(*same, "train.steps=70", cwd=folder)
    assert "from step 60" in output
    assert metrics(run)[-1]["step"] == 70


@pytest.mark.slow
def test_weights_of_another_run_are_the_first_weights(run, tmp_path, sentences):
    more = ["optim.lr=1e-12", "optim.weight_decay=0", "train.steps=1"]
    succeed(
        *train(sentences, *more, f"init_from={run}", f"run.dir={tmp_path / 'next'}"),
        cwd=tmp_path,
    )
    ours = tensor_bytes(tmp_path / "next" / "checkpoints" / "step-00000001")
    theirs = tensor_bytes((run / "checkpoints" / "best").resolve())
    name = "model.backbone.blocks.0.mlp.up.weight"
    np.testing.assert_allclose(
        np.frombuffer(ours[name], np.float32), np.frombuffer(theirs[name], np.float32), rtol=0, atol=1e-9
    )


@pytest.mark.slow
def test_prepare_shows_rows(tmp_path, sentences):
    output = succeed(
        "prepare",
        "data=text",
        f"data.paths=[{sentences}]",
        "tokenizer=bytes",
        "train.sequence_length=80",
        "show=2",
        cwd=tmp_path,
    )
    assert "documents" in output
    assert "row 1" in output
    assert "100.0 %" in output


@pytest.mark.slow
def test_dry_run_does_the_arithmetic_and_leaves_nothing(tmp_path):
    output = succeed(
        "pretrain",
        "experiment=gpt2_small",
        "launch.num_processes=4",
        "tokenizer.vocab_size=50257",
        "--dry-run",
        cwd=tmp_path,
    )
    assert "12 micro batch x 10 accumulation x 4 data parallel = 480 rows" in output
    assert "491,520" in output
    assert "124,475,904" in output  # GPT-2 small, with its vocabulary padded to 50,304
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["pretrain", "data=text", "data.paths=[nowhere.txt]"], 3, "nowhere.txt"),
        (["pretrain", "optim.lrr=1"], 2, "optim.lr"),
        (["generate", "init_from=nowhere"], 2, "nowhere"),
        (["pretrain", "experiment=debug", "train.batch_size=8", "train.micro_batch_size=3"], 2, "batch"),
    ],
)
def test_mistakes_are_told_once_and_without_a_traceback(arguments, exit_code, words, tmp_path):
    done = llmtrain(*arguments, cwd=tmp_path)
    assert done.returncode == exit_code
    assert words in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr + done.stdout
