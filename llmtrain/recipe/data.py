"""Data for a recipe: prepared, with progress shown."""

from __future__ import annotations

from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.sources import SOURCES
from llmtrain.data.tokenizer import TOKENIZERS, Tokenizer
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import preparation_progress
from llmtrain.schema.groups import DataConfig, TokenizerConfig


def open_data(
    data: DataConfig, tokenizer: TokenizerConfig | Tokenizer, seed: int, context: Context
) -> Prepared:
    """The token store of a source: found in the cache, or made now."""
    with preparation_progress() as report:
        return prepare(
            data,
            tokenizer,
            seed=seed,
            builders={**SOURCES, **TOKENIZERS, **context.builders},
            poll=context.stop.poll,
            report=report,
        )
