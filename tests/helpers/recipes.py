"""Recipes called in this process, and models of two steps for them."""

from __future__ import annotations

from pathlib import Path

from llmtrain.compose.compose import compose
from llmtrain.recipe.context import BUILDERS, Context
from llmtrain.schema.registry import builtin_registry
from llmtrain.utils.run_directory import RunDirectory
from llmtrain.utils.signals import StopFlag
from llmtrain.worker import RECIPES
from tests.helpers.tasks import SMALL

TINY = ["train.steps=2", "precision=fp32", *SMALL]


def context(run: Path | None = None, allow_bin: bool = False) -> Context:
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
    directory = None if run is None else RunDirectory(run)
    return Context(directory, builtin_registry(), BUILDERS, StopFlag(), allow_bin)


def call(verb: str, *words: str, run: Path | None = None) -> int:
    (composed,) = compose(verb, words)
    return RECIPES[verb](composed.config, context(run, getattr(composed.config, "allow_bin", False)))


def pretrain(run: Path, text: Path, *words: str) -> Path:
    data = ["data=text", f"data.paths=[{text}]", "data.documents=paragraph", "data.validation_fraction=0"]
    tokens = ["tokenizer=wordpiece", "tokenizer.vocab_size=120"]
    assert call("pretrain", *data, *tokens, *TINY, *words, run=run) == 0
    return run
