"""Settings that contradict each other."""

from __future__ import annotations

import pytest

from llmtrain.compose.compose import compose
from llmtrain.utils.errors import ConfigError, Problem

RUN, TRAIN = "init_from=run", "task.paths=[a.tsv]"
TUNE = (RUN, TRAIN)


def problems(verb: str, *words: str) -> list[Problem]:
    try:
        compose(verb, words)
    except ConfigError as error:
        return error.problems
    return []


CASES = [
    ("pretrain", ["train.steps=1", "train.epochs=1"], "set 2 times", "train.epochs=null"),
    ("pretrain", ["train.steps=1", "train.epochs=1", "train.tokens=9"], "set 3 times", "null"),
    (
        "pretrain",
        ["train.sequence_length=600"],
        "exceeds model.max_positions=512",
        "train.sequence_length=512",
    ),
    ("pretrain", ["train.micro_batch_size=5"], "does not split evenly", "train.batch_size=15 or 20"),
    ("pretrain", ["train.batch_size=4", "train.micro_batch_size=8"], "does not split", "train.batch_size=8"),
    ("pretrain", ["launch.num_processes=3"], "by 3 processes that share it", "15 or 18"),
    ("pretrain", ["launch.num_processes=2", "train.micro_batch_size=32"], "2", "train.batch_size=64"),
    ("pretrain", ["parallel.dp_replicate=2", "launch.num_processes=4"], "needs 2 processes", "=2, or"),
    ("pretrain", ["parallel.tp=3"], "cannot share out evenly: 4 attention heads (by 3)", "=1, 2 or 4"),
    ("pretrain", ["parallel.pp=8", "launch.device=cpu"], "8 stages", "parallel.pp=1, 2, 3 or 4"),
    ("pretrain", ["launch.device=mps", "launch.num_processes=2"], "mps takes one process", "cpu"),
    ("pretrain", ["data=text"], "data.paths is empty", "data.paths=[a.txt"),
    ("pretrain", ["data=text", "data.paths=['']"], "empty path", "remove"),
    (
        "pretrain",
        ["data=text", "data.paths=a", "data.validation_paths=a"],
        "same file",
        "validation_fraction",
    ),
    ("pretrain", ["data=huggingface"], "data.name is not set", "data.name="),
    ("pretrain", ["data=huggingface", "data.name=x", "data.validation_split=train"], "same split", "leave"),
    ("pretrain", ["tokenizer=file"], "tokenizer.path is not set", "tokenizer.json"),
    ("pretrain", ["schedule.warmup=20", "train.steps=20"], "the whole training", "0.02"),
    ("pretrain", ["model.vocab_size=100"], "below tokenizer.vocab_size=4096", "leave"),
    ("pretrain", ["model.vocab_size=256", "tokenizer=bytes"], "257 tokens", "leave"),
    ("prepare", ["show=-1"], "negative", "number"),
    ("prepare", ["data=text"], "data.paths is empty", "data.paths"),
    ("evaluate", [], "needs a model", "init_from=RUN"),
    ("evaluate", [RUN, "data=text"], "data.paths is empty", "data.paths"),
    ("evaluate", [RUN, "batch_size=0"], "greater than 0", "batch_size"),
    ("evaluate", [RUN, "launch.num_processes=2"], "takes one process", "leave"),
    ("generate", [], "needs a model", "init_from=RUN"),
    ("generate", [RUN, "prompt=a", "prompts=b"], "both prompt and prompts", "prompts=FILE"),
    ("generate", [RUN, "system=a"], "for conversations", "chat=true"),
    ("generate", [RUN, "batch_size=0"], "greater than 0", "positive"),
    ("generate", [RUN, "sample.min_p=2"], "between 0 and 1", "min_p"),
    ("generate", [RUN, "sample.stop=['']"], "empty text", "stop"),
    ("chat", [], "needs a model", "init_from=RUN"),
    ("chat", [RUN, "sample.num_samples=2"], "one answer at a time", "num_samples"),
    (
        "pretrain",
        ["objective=mlm", "model=gpt/tiny"],
        "does not go with a model of kind gpt",
        "model=bert/tiny",
    ),
    ("pretrain", ["model=bert/tiny"], "does not go with a model of kind bert", "objective=mlm"),
    ("pretrain", ["objective=mlm", "tokenizer=bpe"], "a mask token; bpe has none", "tokenizer=wordpiece"),
    ("finetune", [TRAIN], "needs a model", "init_from=RUN"),
    ("finetune", [RUN], "task.paths is empty", "task.paths=[train.tsv]"),
    ("finetune", [*TUNE, "task.validation_paths=[a.tsv]"], "on the same file", "validation_fraction"),
    ("finetune", [*TUNE, "train.epochs=null", "train.tokens=9"], "not set in tokens", "train.epochs"),
    ("finetune", [*TUNE, "parallel.cp=2", "launch.device=cpu"], "take whole rows", "parallel.cp=1"),
    ("finetune", [*TUNE, "task.metric=accurcy"], "no score 'accurcy'", "'accuracy'"),
    ("finetune", [*TUNE, "task.target=number", "task.metric=accuracy"], "no score 'accuracy'", "pearson"),
    ("finetune", [*TUNE, "eval.max_tokens=9"], "evaluates all", "task.validation_paths"),
    ("finetune", [*TUNE, "eval.patience=2", "task.validation_fraction=0"], "to validate on", "fraction"),
    ("predict", ["input=a.tsv"], "needs a model", "init_from=RUN"),
    ("predict", [RUN], "input is not set", "input=FILE"),
    ("predict", [RUN, "input=a", "batch_size=0"], "greater than 0", "batch_size"),
    ("predict", [RUN, "input=a", "launch.num_processes=2"], "takes one process", "leave"),
    ("convert", ["target=a"], "source is not set", "source=RUN"),
    ("convert", ["source=a"], "target is not set", "target=FOLDER"),
]


@pytest.mark.parametrize(("verb", "words", "what", "fix"), CASES)
def test_contradictions(verb: str, words: list[str], what: str, fix: str) -> None:
    (problem,) = problems(verb, *words)
    assert what in problem.what
    assert fix in problem.fix
    assert problem.where


def test_all_of_them_at_once() -> None:
    words = ["data=text", "tokenizer=file", "train.sequence_length=600", "train.micro_batch_size=5"]
    assert len(problems("pretrain", *words)) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["launch.num_processes=4", "train.micro_batch_size=4"],
        ["launch.num_processes=2", "parallel.dp_replicate=2"],
        ["parallel.tp=2", "parallel.pp=2", "launch.num_processes=4"],
        ["schedule.warmup=19", "train.steps=20"],
        ["train.minutes=1", "train.steps=5"],
        ["model.vocab_size=8192"],
    ],
)
def test_what_is_fine(words: list[str]) -> None:
    assert problems("pretrain", *words) == []


def test_preparing_takes_one_process_whatever_the_layout() -> None:
    assert problems("prepare", "parallel.tp=3", "launch.num_processes=64") == []


@pytest.mark.parametrize("target", ["label", "labels", "number"])
def test_each_target_has_a_metric_that_fits(target: str) -> None:
    assert problems("finetune", *TUNE, f"task.target={target}") == []
