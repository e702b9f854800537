"""Data for a recipe: prepared, with progress shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from llmtrain.data.loader import Rows
from llmtrain.data.mixture import MixedRows
from llmtrain.data.pairs import PairRows
from llmtrain.data.prepare import Prepared, prepare
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.objective.build import PretrainingObjective
from llmtrain.recipe.context import Context
from llmtrain.recipe.terminal import preparation_progress
from llmtrain.schema.data import DataConfig
from llmtrain.schema.tokenizer import TokenizerConfig
from llmtrain.utils import dist
from llmtrain.utils.errors import Stopped
from llmtrain.utils.seed import derive_seed


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


def training_rows(objective: PretrainingObjective, prepared: Prepared, length: int, seed: int) -> Rows:
    """The rows to train on; those of a mixture in one stream.

    Each source of a mixture has a seed of its own, so that its rows do not depend on the other sources.
    """
    if list(prepared.trains) == [""]:
        return objective.rows(prepared.train, sequence_length=length, seed=seed, shuffle=True)
    sources = {
        name: objective.rows(
            view, sequence_length=length, seed=derive_seed(seed, "source", name), shuffle=True
        )
        for name, view in prepared.trains.items()
    }
    return MixedRows(sources, prepared.weights)


def validation_rows(
    objective: PretrainingObjective, prepared: Prepared, length: int, seed: int
) -> dict[str, Rows]:
    """The rows to validate on, by the name of the text."""
    return {
        name: objective.rows(view, sequence_length=length, seed=seed, shuffle=False)
        for name, view in prepared.validations.items()
    }


def row_notes(validations: dict[str, Rows]) -> list[str]:
    """What the user should know of the rows to validate on."""
    notes = []
    for name, rows in validations.items():
        if isinstance(rows, PairRows) and rows.note:
            notes.append(f"{name}: {rows.note}" if name else rows.note)
    return notes


def mixture_lines(rows: Rows, steps: int, batch_size: int) -> list[str]:
    """Share of each source of a mixture, and how often a training of so many steps reads it."""
    if not isinstance(rows, MixedRows):
        return []
    epochs = rows.epochs(steps * batch_size)
    return [
        f"{name}: {100 * count / rows.shares.period:.4g} % of the rows, read {epochs[name]:.3g} times"
        for name, count in zip(rows.names, rows.shares.counts, strict=True)
    ]
