"""Data for a recipe: prepared, with progress shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import preparation_progress
from llmtrain.schema.data import DataConfig
from llmtrain.schema.tokenizer import TokenizerConfig
from llmtrain.utils import dist
from llmtrain.utils.errors import Stopped


@contextlib.contextmanager
def stopped_together(context: Context) -> Iterator[None]:
    """For work that every process does by itself before the training. Collective.

    A stop may reach one process inside the work and another behind it: all end together.

    Raises:
        Stopped: in every process, if any was asked to stop meanwhile.
    """
    exit_code = 0
    try:
        yield
    except Stopped as stopped:
        exit_code = stopped.exit_code
    exit_codes = dist.gather(torch.tensor(exit_code or context.stop.exit_code))
    if exit_codes.any():
        raise Stopped(int(exit_codes.max()))


def open_data(
    data: DataConfig, tokenizer: TokenizerConfig | Tokenizer, seed: int, context: Context
) -> Prepared:
    """The token store of a source: found in the cache, or made now. Collective.

    Raises:
        Stopped: in every process, if any was asked to stop meanwhile.
    """
    with stopped_together(context), preparation_progress() as report:
        prepared = prepare(
            data,
            tokenizer,
            seed=seed,
            builders=context.builders,
            poll=context.stop.poll,
            report=report,
        )
    return prepared
