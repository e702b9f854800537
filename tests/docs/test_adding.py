"""The worked examples of the pages on adding things: their files are cut out of the pages, and used."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest

from tests.helpers.command import curve, metrics, succeed, validation_curve
from tests.helpers.pages import Block, blocks, commands, write_files
from tests.helpers.paths import ROOT

SHORT = [
    *["train.steps=6", "train.batch_size=8", "train.sequence_length=32", "log.every=1", "eval.every=0"],
    *["compile=never", "launch.threads=1", "precision=fp32"],
]
GPT = ["model.num_layers=2", "model.dim=32"]
TEXT = ["data=text", "tokenizer=bytes"]


def marked(page: str, name: str) -> Block:
    """The block of a page whose commands are run."""
    (block,) = (block for block in blocks(ROOT / "docs" / page) if block.run == name)
    return block


def run(page: str, name: str, folder: Path, more: dict[str, list[str]]) -> list[str]:
    """Run the commands of a page in a folder with its files, made shorter for each verb; what they print."""
    assert write_files(ROOT / "docs" / page, folder)
    return [
        succeed(*command.words, *more[command.words[0]], cwd=folder)
        for command in commands(marked(page, name))
        if "--dry-run" not in command.words
    ]


@pytest.mark.slow
def test_a_model(tmp_path: Path, sentences: Path) -> None:
    training = [*SHORT, *GPT, *TEXT, f"data.paths=[{sentences}]"]
    more = {"pretrain": training, "generate": ["sample.max_new_tokens=8", "sample.temperature=0"]}
    told, text = run("adding_a_model.md", "model", tmp_path, more)
    again = f"evaluate init_from=runs/neox 'run.plugins=[{tmp_path / 'parallel_block'}]'"
    assert again in told  # can be typed as it stands
    assert text.startswith("Return the")
    words = ["pretrain", "run.plugins=[parallel_block]", "model=neox/tiny"]
    assert "resuming   from step 6" in succeed(
        *words, *training, "run.name=neox", "train.steps=8", cwd=tmp_path
    )
    neox = curve(tmp_path / "runs/neox")
    assert len(neox) == 8
    succeed("pretrain", "model=gpt/tiny", "model.position=rotary", "run.name=gpt", *training, cwd=tmp_path)
    gpt = curve(tmp_path / "runs/gpt")
    assert gpt[0] != neox[0]
    assert gpt[0][1] == pytest.approx(neox[0][1], abs=0.1)  # both know nothing at first


def noisy(folder: Path, text: Path) -> list[str]:
    """Run the commands of the page on objectives; words of its training."""
    training = [*SHORT, "model=gpt/tiny", *GPT, *TEXT, f"data.paths=[{text}]"]
    _, told = run("adding_an_objective.md", "objective", folder, {"pretrain": training, "evaluate": []})
    assert json.loads(told)["loss"] > 0
    assert len(curve(folder / "runs/noisy")) == 6
    return training


@pytest.mark.slow
def test_an_objective(tmp_path: Path, sentences: Path) -> None:
    noisy(tmp_path, sentences)


@pytest.mark.equivalence
def test_an_objective_without_noise_is_causal_and_accumulates(tmp_path: Path, sentences: Path) -> None:
    training = noisy(tmp_path, sentences)
    words = ["pretrain", "run.plugins=[noisy]", "objective=noisy"]
    silent = [*words, "objective.noise=0", "run.name=silent"]
    parts = [*words, "objective.noise=0.2", "run.name=parts", "train.micro_batch_size=2"]
    for one in (silent, parts, ["pretrain", "run.name=causal"]):
        succeed(*one, *training, cwd=tmp_path)
    found = {name: curve(tmp_path / "runs" / name) for name in ("noisy", "silent", "parts", "causal")}
    assert found["silent"] == found["causal"] != found["noisy"]
    assert [loss for _, loss, _ in found["parts"]] == pytest.approx([loss for _, loss, _ in found["noisy"]])
    first = [validation_curve(tmp_path / "runs" / name) for name in ("noisy", "causal")]
    assert first[0] != first[1]


@pytest.mark.slow
def test_a_source(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "notes.db")
    connection.execute("create table documents (text)")
    texts = [(f"note {number} says what every note says",) for number in range(200)]
    connection.executemany("insert into documents values (?)", texts)
    connection.commit()
    connection.close()
    training = [*SHORT, "model=gpt/tiny", *GPT, "tokenizer=bytes"]
    told, _ = run("adding_a_source.md", "source", tmp_path, {"pretrain": training, "prepare": training})
    assert "200" in told
    assert len(curve(tmp_path / "runs/notes")) == 6


@pytest.mark.slow
def test_a_task(tmp_path: Path, sentences: Path) -> None:
    small = ["model=bert/debug", "tokenizer.vocab_size=120", "data=text", f"data.paths=[{sentences}]"]
    succeed("pretrain", "objective=mlm", *small, *SHORT, "run.name=bert", cwd=tmp_path)
    chooser = random.Random(0)
    words = ["dreadful", "dull", "fair", "good", "splendid"]
    reviews = [{"text": f"a {words[n - 1]} film", "stars": n} for n in chooser.choices(range(1, 6), k=300)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    (tmp_path / "new.jsonl").write_text('{"text": "a splendid film"}\n{"text": "a dreadful film"}\n')
    length = ["train.steps=120", "eval.every=40", "optim.lr=3e-3", "log.every=20"]
    more = {"finetune": [*SHORT, *length, "dropout=0"], "predict": []}
    _, predicted = run("adding_a_task.md", "task", tmp_path, more)
    assert max(one["validation_closeness"] for one in metrics(tmp_path / "runs/stars", "validation")) > 0.9
    best, worst = (json.loads(line)["stars"] for line in predicted.splitlines())
    assert best - worst >= 3
