"""`llmtrain pretrain`: train a language model on text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from llmtrain.data.loader import Rows, evaluation_batches
from llmtrain.data.prepare import Prepared
from llmtrain.engine.evaluate import evaluate
from llmtrain.engine.hooks import Evaluation, Evaluator
from llmtrain.engine.step import Autocast
from llmtrain.metrics.summary import text_commands
from llmtrain.model.assembled import Assembled
from llmtrain.model.initialise import initialise
from llmtrain.objective.build import Objective, build_objective
from llmtrain.recipe.checkpointed import open_pretrained, start_from
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data
from llmtrain.recipe.resolve import micro_batch_size, resolve_model
from llmtrain.recipe.training import Work, check_same_data, train
from llmtrain.schema.roots import PretrainConfig
from llmtrain.utils import dist


def pretrain(config: PretrainConfig, context: Context) -> int:
    """Train a model as the config says; goes on from the newest checkpoint of the run directory.

    Returns:
        exit code: 0, or that of the signal that stopped the run.
    """
    return train(config, context, text_work)


def text_work(config: PretrainConfig, context: Context, found: Path | None) -> Work:
    """The text as rows, and the model with the vocabulary of its tokenizer."""
    prepared = open_data(config.data, config.tokenizer, config.run.seed, context)
    if found is not None:
        check_same_data(found, prepared.identity())
    config.model = resolve_model(config.model, prepared.tokenizer.vocab_size)
    objective = build_objective(config.objective, config.data, context.builders)
    length, seed = config.train.sequence_length, config.run.seed
    rows = objective.rows(prepared.train, sequence_length=length, seed=seed, shuffle=True)
    validation = None
    if prepared.validation is not None:
        validation = objective.rows(prepared.validation, sequence_length=length, seed=seed, shuffle=False)
    return Work(
        verb="pretrain",
        model=config.model,
        tokenizer=prepared.tokenizer,
        objective=objective,
        rows=rows,
        mean_length=length,
        first_weights=lambda model: first_weights(model, config, context),
        evaluator=text_evaluator(config, objective, validation),
        identity=prepared.identity(),
        data_line=data_line(prepared),
        warnings=list(prepared.report.warnings),
        next_commands=lambda path: text_commands(path, config.model.causal),
    )


def data_line(prepared: Prepared) -> str:
    """What there is to learn from."""
    validation = prepared.validation.num_tokens if prepared.validation else 0
    return (
        f"{prepared.train.num_tokens:,} tokens to train on, {validation:,} to validate; "
        f"vocabulary {prepared.tokenizer.vocab_size:,}"
    )


def first_weights(model: Assembled, config: PretrainConfig, context: Context) -> list[str]:
    """Weights to start from: drawn anew, or those of `init_from`; returns what the user should know."""
    initialise(model, config.run.seed)
    if config.init_from is None:
        return []
    return start_from(open_pretrained(config.init_from, context), model)


def text_evaluator(
    config: PretrainConfig, objective: Objective, validation: Rows | None
) -> Callable[[Assembled, torch.device, Autocast], Evaluator | None]:
    """Maker of the evaluation on the validation text."""

    def make(model: Assembled, device: torch.device, autocast: Autocast) -> Evaluator | None:
        if validation is None:
            return None
        size = config.eval.batch_size or micro_batch_size(config.train, dist.world_size())

        def evaluate_text(stopped: Callable[[], bool]) -> Evaluation | None:
            batches = evaluation_batches(
                validation, size, dist.rank(), dist.world_size(), config.eval.max_tokens
            )
            measured = evaluate(model, objective, batches, device, autocast, stopped)
            return None if measured is None else Evaluation(measured.stats, measured.counts)

        return evaluate_text

    return make
