"""What a user is told about each kind of mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

MISTAKES = {
    "model.dm=3": "did you mean 'model.dim'?",
    "modle.dim=3": "did you mean 'model.dim'?",
    "lr=1e-3": "did you mean 'optim.lr'?",
    "learning_rate=1e-3": "did you mean 'optim.lr'?",
    "model=gpt/smal": "did you mean 'gpt/small'?",
    "model=small": "did you mean 'gpt/small'?",
    "model=null": "known:",
    "model/gpt=small": "write model=gpt/small",
    "experiment=debgu": "did you mean 'debug'?",
    "precision=fp23": "did you mean 'fp32'?",
    "model.norm=rms": "rmsnorm",
    "model.bias=maybe": "true or false",
    "train.steps=abc": "a whole number",
    "train.steps=1.5": "a whole number",
    "train.steps=-1": "greater than 0",
    "optim.lr=0": "greater than 0",
    "optim.lr=fast": "a number",
    "eval=5": "eval.every",
    "data.name=who/what": "data=huggingface",
    "model.kind=gpt": "model=...",
    "train.batch_size=null": "a whole number",
    "+train.x=1": "+extra.train.x=1",
    "++train.steps=1": "+extra",
    "~optim.lr": "optim.lr=null",
    "hydra.run.dir=x": "run.dir",
    "hydra/launcher=joblib": "-m",
    "optim.lr=1e-3,1e-4": "-m",
    "run.plugins=[a.txt": "quote",
    "compile": "compile=VALUE",
    "run.name=${train.stepz}": "run.name",
    "run.name=a/b": "run.dir",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_each_mistake_is_explained(cli: Cli, word: str) -> None:
    result = cli("pretrain", word)
    assert result.code == 2
    assert MISTAKES[word] in result.err
    assert f"where: command line: {word}" in result.err
    assert "Traceback" not in result.err
    assert result.err.count("error:") == 1
    assert not result.out


def test_all_are_listed_at_once_in_order(cli: Cli) -> None:
    by_key: dict[str, str] = {}
    for word in MISTAKES:
        by_key.setdefault(word.partition("=")[0], word)
    del by_key["experiment"]  # it might choose the data that has data.name: that is not reported then
    words = list(by_key.values())
    assert len(words) > 20
    result = cli("pretrain", *words)
    assert result.code == 2
    places = [line.partition("command line: ")[2] for line in result.err.splitlines() if "where:" in line]
    assert list(dict.fromkeys(places)) == words


def test_a_wrong_choice_does_not_hide_other_mistakes(cli: Cli) -> None:
    result = cli("pretrain", "model=gpt/smal", "model.dm=3", "optim.lr=-1")
    assert result.err.count("error:") == 3


def test_every_value_of_a_sweep_is_checked(cli: Cli) -> None:
    result = cli(
        "pretrain", "-m", "optim.lr=1e-3,fast,-2", "model=gpt/tiny,gpt/tinny", "train.steps=range(1,3)"
    )
    assert result.code == 2
    assert "not 'fast'" in result.err
    assert "'gpt/tiny'?" in result.err
    assert result.err.count("error:") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "did you mean 'pretrain'?"),
        (["model=gpt/tiny"], "llmtrain pretrain model=gpt/tiny"),
        (["pretrain", "--lr", "3"], "optim.lr=3"),
        (["pretrain", "--num-layers=3"], "model.num_layers=3"),
        (["pretrain", "--dryrun"], "'--dry-run'"),
        (["pretrain", "--config-dir"], "--config-dir VALUE"),
        (["pretrain", "--config-dir", "nowhere"], "there is no config folder 'nowhere'"),
        (["pretrain", "--cfg", "all"], "--cfg job"),
        (["configs", "lss"], "'ls'"),
        (["configs", "cat", "model/gpt/smal"], "'model/gpt/small'"),
        (["configs", "ls", "modle"], "'model'"),
        (["configs", "cat"], "configs cat NAME"),
        (["--completion", "fish"], "bash or zsh"),
        (["generate", "model=gpt/tiny"], "unknown key 'model'"),
        (["generate"], "init_from="),
        (["generate", "experiment=debug"], "unknown key 'experiment'"),
        (["finetune", "model=bert/tiny"], "leave it out: the model comes with init_from"),
        (["finetune", "task=question_answering"], "give one of question_answering/cmrc2018, "),
        (["finetune", "task=conll"], "did you mean 'token_classification/conll2003'?"),
        (["finetune", "model_name_or_path=x"], "did you mean 'init_from'?"),
    ],
)
def test_wrong_words(cli: Cli, words: list[str], message: str) -> None:
    result = cli(*words)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("error: ")


def test_the_three_lines(cli: Cli) -> None:
    assert cli("pretrain", "train.stesp=3").err == (
        "error: unknown key 'train.stesp'\n"
        "  where: command line: train.stesp=3\n"
        "  do: did you mean 'train.steps'?\n"
    )


def test_an_experiment_without_its_package_line_is_told_to_have_one(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text("train:\n  steps: 3\n")
    result = cli("pretrain", "--config-dir", "mine", "experiment=short")
    assert result.code == 2
    assert "# @package _global_" in result.err
    assert result.err.count("error:") == 1
