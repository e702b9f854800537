"""Layouts that cannot work are refused, and what is offered instead works."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
import yaml

from llmtrain.compose.compose import compose
from llmtrain.model.layers.mlp import build_mlp
from llmtrain.schema.layout import layout_problems
from llmtrain.schema.load import build, dump
from llmtrain.schema.model import Activation, BERTConfig, GPTConfig
from llmtrain.schema.parallel import count_processes
from llmtrain.schema.registry import builtin_registry
from llmtrain.schema.roots import ROOTS
from llmtrain.utils.errors import Problem

GPT = GPTConfig(num_layers=4, num_heads=4, num_kv_heads=2, dim=64, vocab_size=500, max_positions=128)
BERT = BERTConfig(num_layers=4, num_heads=6, dim=96)
BASE = ["launch.device=cpu", "train.sequence_length=128", "train.batch_size=16"]


@cache
def base(verb: str) -> dict[str, Any]:
    """Plain data of a configuration of one process."""
    words = ["init_from=run", "task.paths=[a.tsv]"] if verb == "finetune" else []
    (composed,) = compose(verb, [*words, *BASE])
    data: dict[str, Any] = dump(composed.config)
    return data


def check(verb: str, model: Any, settings: str) -> list[Problem]:
    """Problems of the base configuration with some settings."""
    data = copy.deepcopy(base(verb))
    if verb == "pretrain":
        data["model"] = dump(model)
    for word in settings.split():
        key, text = word.split("=")
        *sections, last = key.split(".")
        section = data
        for name in sections:
            section = section[name]
        section[last] = yaml.safe_load(text)
    config = build(ROOTS[verb], data, builtin_registry())
    model = config.model if verb == "pretrain" else model
    world = count_processes(config.launch, config.parallel)
    return layout_problems(config, world, model, config.train.sequence_length)


def offers(fix: str) -> list[str]:
    """`give a=1, 2 or 4, or b=3` -> each setting of one value; what has to be set together stays so."""
    found = []
    for part in re.split(r",? or (?=[a-z_]+\.)|, (?=[a-z_]+\.)|, or (?=[a-z_]+=)", fix.removeprefix("give ")):
        key, _, values = part.partition("=")
        if " " in part and "=" in values:
            found.append(part)
        else:
            found += [f"{key}={value}" for value in re.split(r", (?![^\[]*\])| or ", values)]
    return found


REFUSED = [
    ("pretrain", GPT, "launch.num_processes=3 parallel.tp=2", "needs a multiple of 2 processes, not 3"),
    ("pretrain", GPT, "launch.num_processes=4 parallel.dp_replicate=2", "needs 2 processes, not 4"),
    ("pretrain", GPT, "parallel.tp=-1 parallel.pp=-1", "parallel.pp and parallel.tp are both -1"),
    ("pretrain", GPT, "parallel.tp=4", "2 heads of keys and values (by 4)"),
    ("pretrain", GPT, "parallel.tp=2 parallel.cp=2", "2 heads of keys and values (by 4)"),
    ("pretrain", GPT, "parallel.cp=3", "4 attention heads (by 3)"),
    ("pretrain", GPT, "launch.num_processes=4 parallel.tp=-1", "parallel.tp=4 cannot share out"),
    ("pretrain", GPT, "launch.num_processes=3 parallel.tp=3", "parallel.tp=3 cannot share out"),
    ("pretrain", GPT, "parallel.tp=2 model.hidden_dim=255", "width 255 (by 2)"),
    ("pretrain", BERT, "parallel.tp=3 train.sequence_length=126", "padded to a multiple of 64 (by 3)"),
    ("pretrain", GPT, "parallel.tp=2 model.vocab_multiple=5", None),
    ("pretrain", GPT, "parallel.tp=2 model.vocab_multiple=167", "a vocabulary padded to 501 (by 2)"),
    ("pretrain", GPT, "parallel.cp=2 train.sequence_length=127", "rows of 127 tokens (by 2)"),
    ("pretrain", GPT, "parallel.pp=8", "makes 8 stages of a model with 4 blocks"),
    ("pretrain", GPT, "parallel.pp=-1 launch.num_processes=8", "makes 8 stages"),
    ("pretrain", GPT, "parallel.pp=2 parallel.schedule=interleaved_1f1b parallel.stages_per_process=3", "6 "),
    ("pretrain", GPT, "parallel.pp=3 parallel.cuts=[1]", "makes 2 stages, the pipeline has 3"),
    ("pretrain", GPT, "parallel.pp=2 parallel.cuts=[4]", "beyond the 4 blocks"),
    ("pretrain", GPT, "launch.num_processes=3", "does not split evenly by 3 processes that share it"),
    ("pretrain", GPT, "train.micro_batch_size=5", "does not split evenly by train.micro_batch_size=5"),
    ("pretrain", GPT, "parallel.dp_shard=3 parallel.tp=2", "by 3 processes that share it"),
    ("pretrain", GPT, "parallel.pp=4 train.batch_size=3", "needs 4 microbatches or more, not 3"),
    ("pretrain", GPT, "parallel.pp=4 train.micro_batch_size=8", "(train.batch_size=16 by"),
    (
        "pretrain",
        GPT,
        "parallel.pp=2 parallel.schedule=interleaved_zero_bubble train.batch_size=7",
        "needs a multiple of 2 microbatches, not 7",
    ),
    (
        "pretrain",
        GPT,
        "parallel.pp=2 parallel.schedule=interleaved_zero_bubble train.activation_checkpointing=selective",
        "selective does not go with parallel.schedule",
    ),
    ("pretrain", GPT, "parallel.tp=2 precision=fp16", "precision=fp16 goes with copies"),
    ("pretrain", GPT, "launch.device=mps parallel.tp=2", "mps takes one process, not 2"),
    ("pretrain", GPT, "launch.device=mps launch.num_processes=2", "mps takes one process, not 2"),
    ("finetune", None, "parallel.cp=2", "the heads of tasks take whole rows"),
    ("finetune", None, "parallel.cp=-1 launch.num_processes=2", "the heads of tasks take whole rows"),
    ("finetune", None, "parallel.tp=2 train.sequence_length=63", "rows of 63 tokens (by 2)"),
    ("finetune", GPT, "parallel.tp=4", "2 heads of keys and values (by 4)"),
]


@pytest.mark.parametrize(("verb", "model", "settings", "what"), REFUSED)
def test_each_size_that_is_offered_works(verb: str, model: Any, settings: str, what: str | None) -> None:
    problems = check(verb, model, settings)
    if what is None:
        assert problems == []
        return
    (problem,) = problems
    assert what in problem.what
    assert problem.where.startswith(("parallel.", "train.", "launch.", "precision"))
    assert problem.fix.startswith("give ")
    tried = offers(problem.fix)
    assert tried
    for offer in tried:
        assert check(verb, model, f"{settings} {offer}") == [], (problem.fix, offer)


def test_all_problems_are_told_at_once() -> None:
    settings = (
        "launch.num_processes=5 parallel.tp=3 parallel.pp=5 precision=fp16 train.micro_batch_size=3 "
        "parallel.cuts=[1]"
    )
    problems = check("pretrain", GPT, settings)
    words = ["processes", "fp16", "cannot share out", "stages of a model", "parallel.cuts", "evenly by train"]
    assert len(problems) == len(words)
    for problem, word in zip(problems, words, strict=True):
        assert word in problem.what
        assert problem.fix


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "precision=fp16 launch.num_processes=4",
        "parallel.tp=2 parallel.pp=2 parallel.dp_shard=-1",
        "parallel.tp=2 parallel.pp=2 parallel.dp_shard=-1 launch.num_processes=8",
        "parallel.cp=2 parallel.dp_shard=2 parallel.dp_replicate=2",
        "parallel.pp=2 parallel.schedule=interleaved_1f1b",
        "parallel.pp=2 parallel.cuts=[1]",
        "parallel.cuts=[9]",
    ],
)
def test_what_is_fine(settings: str) -> None:
    assert check("pretrain", GPT, settings) == []


def test_a_model_that_is_not_known_yet_is_not_judged() -> None:
    assert check("finetune", None, "parallel.tp=4 parallel.pp=16") == []
    assert len(check("finetune", GPT, "parallel.tp=4 parallel.pp=16")) == 2


def test_under_torchrun_other_numbers_of_processes_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    (problem,) = check("pretrain", GPT, "parallel.tp=2")
    assert "needs a multiple of 2 processes, not 3" in problem.what
    assert problem.fix == "start 2 or 4 processes, or give other degrees"


@pytest.mark.parametrize("activation", list(Activation))
def test_the_width_of_the_feed_forward_layer_is_the_models(activation: Activation) -> None:
    layer = build_mlp(96, None, activation, bias=False)
    assert GPTConfig(dim=96, num_heads=2, activation=activation).feed_forward_dim == layer.down.in_features
