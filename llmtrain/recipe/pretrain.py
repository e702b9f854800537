"""`llmtrain pretrain`: train a language model on text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from pathlib import Path

from llmtrain.data.loader import Rows, evaluation_batches
from llmtrain.data.prepare import Prepared
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.evaluate import Measured, evaluate, merge
from llmtrain.engine.hooks import Evaluation, Evaluator
from llmtrain.metrics.summary import text_commands
from llmtrain.model.assembled import Assembled
from llmtrain.model.initialise import initialise
from llmtrain.objective.build import Objective, build_objective
from llmtrain.parallel.layout import Layout
from llmtrain.recipe.checkpointed import compare_tokenizers, open_base, open_pretrained, start_from
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import mixture_lines, open_data, row_notes, training_rows, validation_rows
from llmtrain.recipe.resolve import evaluation_batch_size, resolve_model, total_steps
from llmtrain.recipe.training import Work, check_same_data, train
from llmtrain.schema.roots import PretrainConfig


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
    rows = training_rows(objective, prepared, length, seed)
    validations = validation_rows(objective, prepared, length, seed)
    steps = total_steps(config.train, rows.rows_per_epoch)
    start = None
    if config.adapt is not None and found is None:
        assert config.init_from is not None
        start = open_pretrained(config.init_from, context)
    return Work(
        verb="pretrain",
        model=config.model,
        tokenizer=prepared.tokenizer,
        objective=objective,
        rows=rows,
        mean_length=length,
        first_weights=lambda model, names: first_weights(model, names, config, prepared.tokenizer, context),
        evaluator=text_evaluator(config, objective, validations),
        identity=prepared.identity(),
        data_line=(f"\n{'':11}").join(
            [data_line(prepared), *mixture_lines(rows, steps, config.train.batch_size)]
        ),
        warnings=[*prepared.report.warnings, *row_notes(validations)],
        next_commands=lambda path: text_commands(path, config.model.causal),
        base=open_base(config, start, found, context, carried=("",)),
    )


def data_line(prepared: Prepared) -> str:
    """What there is to learn from."""
    train, validation = prepared.report.train_tokens, prepared.report.validation_tokens
    return (
        f"{train:,} tokens to train on, {validation:,} to validate; "
        f"vocabulary {prepared.tokenizer.vocab_size:,}"
    )


def first_weights(
    model: Assembled, names: Set[str], config: PretrainConfig, tokenizer: Tokenizer, context: Context
) -> list[str]:
    """Weights to start from: drawn anew, or those of `init_from`; returns what the user should know."""
    initialise(model, config.run.seed)
    if config.init_from is None:
        return []
    pretrained = open_pretrained(config.init_from, context)
    return [*compare_tokenizers(pretrained, tokenizer), *start_from(pretrained, model, names)]


def text_evaluator(
    config: PretrainConfig, objective: Objective, validations: Mapping[str, Rows]
) -> Callable[[Layout], Evaluator | None]:
    """Maker of the evaluation on the validation texts: on each, and on all of their labels together."""

    def make(layout: Layout) -> Evaluator | None:
        if not validations:
            return None
        mesh = layout.mesh
        size = evaluation_batch_size(config, mesh.degrees)

        def evaluate_text(stopped: Callable[[], bool]) -> Evaluation | None:
            parts: dict[str, Measured] = {}
            for name, rows in validations.items():
                batches = evaluation_batches(
                    rows, size, mesh.data_rank, mesh.degrees.data, config.eval.max_tokens
                )
                measured = evaluate(layout, objective, batches, stopped)
                if measured is None:
                    return None
                parts[name] = measured
            return Evaluation(*merge(objective, parts))

        return evaluate_text

    return make
