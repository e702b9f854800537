"""The quickstart does what it says, in fewer steps; its runs leave the files that another page describes."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest

from tests.helpers.command import llmtrain
from tests.helpers.pages import blocks, commands
from tests.helpers.paths import ROOT
from tests.helpers.tasks import write_classification

SHORT = [
    *["train.steps=3", "train.minutes=null", "train.batch_size=8", "train.sequence_length=32"],
    *["compile=never", "launch.threads=1", "precision=fp32"],
]
TEXT = ["eval.max_tokens=512", "model.num_layers=1", "model.num_heads=2", "model.dim=32"]
ADDED = {
    "pretrain": [*SHORT, *TEXT],
    "finetune": SHORT,
    "generate": ["sample.max_new_tokens=5"],
    "prepare": ["train.sequence_length=32"],
}
"""Words that make the commands of the page short."""


def run_block(name: str, folder: Path, *more: str) -> list[tuple[int, str]]:
    """Run the commands of a marked block; exit code and output of each."""
    (block,) = (block for block in blocks(ROOT / "docs" / "quickstart.md") if block.run == name)
    found = []
    for command in commands(block):
        verb = command.words[0]
        added = [] if "--help" in command.words else ADDED.get(verb, [])
        if verb in ("pretrain", "prepare") and added and "data=text" not in command.words:
            added = [*added, *more]
        done = llmtrain(*command.words, *added, cwd=folder)
        found.append((done.returncode, done.stdout + done.stderr))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sentences: Path) -> Path:
    """Where a reader of the page works."""
    place = tmp_path_factory.mktemp("quickstart")
    (place / "my.txt").write_text(sentences.read_text())
    rows = write_classification(place / "reviews.tsv", 40).read_text().replace("\t", ",")
    (place / "reviews.csv").write_text(rows)
    (place / "new.txt").write_text("the cat paints the river\n")
    return place


@pytest.mark.slow
def test_a_first_model_and_own_text(folder: Path) -> None:
    small = ["data=text", "data.paths=[my.txt]", "tokenizer=bytes"]  # the built-in corpus takes seconds
    done = [*run_block("first", folder, *small), *run_block("own", folder)]
    for code, output in done:
        assert code == 0, output
    assert "Return the" in done[1][1]
    assert json.loads(done[2][1])["perplexity"] > 1
    assert done[5][1].count("Once") == 2


@pytest.mark.equivalence
def test_an_encoder_for_a_task(folder: Path) -> None:
    done = run_block("task", folder, "data=text", "data.paths=[my.txt]", "tokenizer.vocab_size=120")
    for code, output in done:
        assert code == 0, output
    assert json.loads(done[-1][1])["label"] in ("action", "thought")


@pytest.mark.equivalence
def test_things_to_try(folder: Path) -> None:
    done = run_block("try", folder, "data=text", "data.paths=[my.txt]", "tokenizer=bytes")
    assert [code for code, _ in done] == [0, 0, 0, 0, 2], done
    assert "optim.lr" in done[0][1]
    assert "parameters" in done[1][1]
    assert done[2][1].count("0.003") >= 1
    assert "lr-" in done[3][1]
    assert "did you mean 'optim.lr'" in done[4][1]


@pytest.mark.slow
def test_a_run_leaves_the_files_that_are_described(folder: Path) -> None:
    """Of the first model, after its test."""
    run = folder / "runs" / "demo"
    if not run.exists():
        run_block("first", folder, "data=text", "data.paths=[my.txt]", "tokenizer=bytes")
    page = (ROOT / "docs" / "run_directory.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    known = {name.split("/")[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert {path.name for path in run.iterdir()} <= known
    listed = next(block for block in blocks(ROOT / "docs" / "run_directory.md") if "MANIFEST" in block.text)
    names = set(re.findall(r"[\w-]+\.(?:json|yaml|safetensors)", listed.text))
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert {path.name for path in checkpoint.iterdir()} == names
    for pattern in ("config.yaml", "metrics.jsonl", "logs", "checkpoints", "summary.json", "report.html"):
        assert any(fnmatch.fnmatch(name, pattern) for name in known), pattern
