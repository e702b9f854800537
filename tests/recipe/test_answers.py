"""A decoder is taught to answer: trained, resumed, evaluated and asked."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from llmtrain.utils.errors import ConfigError, DataError
from llmtrain.utils.io import read_json, read_json_lines
from tests.helpers.recipes import TINY, call
from tests.helpers.tasks import NAMES, THINGS, VERBS


@pytest.fixture(scope="module")
def conversations(folder: Path) -> Path:
    path = folder / "conversations.jsonl"
    rows = [
        {"instruction": f"what does {name} do ?", "output": f"{name} {verb} {THINGS[i % 6]} ."}
        for i, name in enumerate(NAMES)
        for verb in VERBS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def words(decoder: Path, conversations: Path) -> list[str]:
    return [
        *["task=generation/custom", f"init_from={decoder}", f"task.paths=[{conversations}]", *TINY],
        *["train.batch_size=4", "train.sequence_length=128", "train.steps=4", "optim.lr=0.01"],
        *["task.sample_tokens=5", "checkpoint.every=2", "checkpoint.keep=5", "checkpoint.best=false"],
    ]


@pytest.fixture(scope="module")
def answering(folder: Path, words: list[str]) -> Path:
    assert call("finetune", *words, run=folder / "answering") == 0
    return folder / "answering"


def test_it_learns_and_is_asked_at_the_end(answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = read_json(answering / "summary.json")
    assert summary["validation_perplexity"] == pytest.approx(math.exp(summary["validation_loss"]))
    assert 0 <= summary["validation_accuracy"] <= 1
    kept = read_json_lines(answering / "predictions.jsonl")
    assert len(kept) == 3
    assert all(one["prompt"].startswith("what does") and one["expected"].endswith(" .") for one in kept)
    assert len({len(one["answer"]) for one in kept}) > 0


def test_it_is_evaluated_as_it_was_validated(answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though there are other rows: one conversation in each, in another number at once."""
    capsys.readouterr()
    assert call("evaluate", f"init_from={answering}", "batch_size=2") == 0
    told, summary = json.loads(capsys.readouterr().out), read_json(answering / "summary.json")
    for name in ("loss", "accuracy", "perplexity"):
        assert told[name] == pytest.approx(summary[f"validation_{name}"], rel=1e-5)


def test_it_writes_text(answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ["sample.num_samples=1", "sample.max_new_tokens=4", "prompt='what does the cat do ?'"]
    assert call("generate", f"init_from={answering}", "chat=true", *sampling) == 0
    for verb, more in (("predict", ["input=x.txt"]), ("evaluate", ["output=x.jsonl"])):
        with pytest.raises(ConfigError, match="llmtrain generate prompts=FILE"):
            call(verb, f"init_from={answering}", *more)


def test_what_does_not_fit_is_told(words: list[str], answering: Path, tmp_path: Path) -> None:
    told = read_json_lines(answering / "events.jsonl")[0]["text"]
    longest = int(re.findall(r"([0-9]+) at most", told)[0])
    short = [*words, f"train.sequence_length={longest - 1}", "train.steps=1", "task.samples=0"]
    with pytest.raises(DataError, match="tokens, 1 too many"):
        call("finetune", *short, "task.too_long=fail", run=tmp_path / "fail")
    for policy, what in (("cut", "examples cut to"), ("skip", "examples left out")):
        run = tmp_path / policy
        assert call("finetune", *short, f"task.too_long={policy}", run=run) == 0
        assert what in read_json_lines(run / "events.jsonl")[0]["text"]


def test_an_encoder_is_refused(words: list[str], encoder: Path, tmp_path: Path) -> None:
    other = [f"init_from={encoder}" if one.startswith("init_from") else one for one in words]
    with pytest.raises(ConfigError, match="looks at both sides"):
        call("finetune", *other, run=tmp_path / "run")
