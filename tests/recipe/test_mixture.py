"""A mixture from the words of a command to scores, prepared, trained, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.recipes import TINY, call


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixture")
    for name, word in (("ant", "crawl"), ("bee", "fly")):
        lines = [f"The {name} can {word} {i} times. It will {word} again, it said." for i in range(80)]
        (folder / f"{name}.txt").write_text("\n\n".join(lines))
    return [
        "data=mixture",
        f"data.sources.ant.paths={folder}/ant.txt",
        f"data.sources.bee.paths={folder}/bee.txt",
        "data.sources.ant.documents=paragraph",
        "data.sources.bee.documents=paragraph",
        "data.sources.ant.weight=70",
        "data.sources.bee.weight=30",
        "data.validation_fraction=0.2",
    ]


def records(run: Path, kind: str) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.parametrize("objective", ["causal", "mlm_nsp"])
def test_each_text_is_validated_on(
    words: list[str], objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["model=gpt/debug"] if objective == "causal" else ["model=bert/debug"]
    tokens = ["tokenizer=wordpiece", "tokenizer.vocab_size=80", f"objective={objective}"]
    run = tmp_path / "run"
    assert call("pretrain", *words, *model, *tokens, *TINY, run=run) == 0
    shown = capsys.readouterr().out
    assert "ant: 70 % of the rows, read " in shown
    last = records(run, "validation")[-1]
    name = "loss" if objective == "causal" else "mlm_accuracy"
    parts = [
        (last[f"validation_{text}_{name}"], last[f"validation_{text}_labels"]) for text in ("ant", "bee")
    ]
    mean = sum(value * labels for value, labels in parts) / last["validation_labels"]
    assert last[f"validation_{name}"] == pytest.approx(mean, rel=1e-6)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_validation_loss"] == last["validation_loss"]
    assert summary["validation_ant_loss"] == last["validation_ant_loss"]
    call("evaluate", f"init_from={run}")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for text in ("ant", "bee"):
        assert result[f"{text}_loss"] == pytest.approx(last[f"validation_{text}_loss"], rel=1e-5)
    call("evaluate", f"init_from={run}", *words[:5])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] > 0


def test_what_prepare_tells(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call(
        "prepare",
        *words,
        "data.clean.exact_duplicates=true",
        "tokenizer=unigram",
        "tokenizer.vocab_size=320",
        "show=2",
    )
    shown = capsys.readouterr().out
    for told in ("ant: ", "tokens in a document", "ant: 70 % of the rows", "</s> = ", "source ant, labels"):
        assert told in shown


def test_what_was_removed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one line\none line\nanother line of jo@example.org\n")
    clean = ["data.clean.exact_duplicates=true", "data.clean.personal=[email]"]
    text = ["data=text", f"data.paths={tmp_path}/a.txt", "data.documents=line", "tokenizer=bytes"]
    call("prepare", *text, *clean)
    shown = capsys.readouterr().out
    assert "2 of 3" in shown
    assert "removed by exact duplicate: 1 (33 % of the documents)" in shown
    assert "changed by personal email: 1" in shown
    assert "another line of <email>" in shown
