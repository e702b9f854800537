"""Data for a recipe: prepared, with progress shown."""

from __future__ import annotations

import contextlib

import torch

from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import preparation_progress
from llmtrain.schema.data import DataConfig
from llmtrain.schema.tokenizer import TokenizerConfig
from llmtrain.utils import dist
from llmtrain.utils.errors import Stopped


def open_data(
    data: DataConfig, tokenizer: TokenizerConfig | Tokenizer, seed: int, context: Context
) -> Prepared:
    """The token store of a source: found in the cache, or made now. Collective.

    Raises:
        Stopped: in every process, if any was asked to stop meanwhile.
    """
    prepared = None
    with preparation_progress() as report, contextlib.suppress(Stopped):
        prepared = prepare(
            data,
            tokenizer,
            seed=seed,
            builders=context.builders,
            poll=context.stop.poll,
            report=report,
        )
    # A stop may reach one process inside the preparation and another behind it: all end together.
    exit_codes = dist.gather(torch.tensor(context.stop.exit_code))
    if prepared is None or exit_codes.any():
        raise Stopped(int(exit_codes.max()))
    return prepared
