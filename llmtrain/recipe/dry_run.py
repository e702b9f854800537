"""`--dry-run` of the verbs that train: the arithmetic of a run. Texts are not read, examples are."""

from __future__ import annotations

import dataclasses

import numpy as np
from rich.table import Table

from llmtrain.data.tokenizer import file_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.objective.build import build_objective
from llmtrain.optim.optimizer import freeze
from llmtrain.recipe.checkpointed import open_pretrained
from llmtrain.recipe.context import Context
from llmtrain.recipe.finetune import adapted_model, data_line, read_examples, skipped
from llmtrain.recipe.resolve import DEFAULT_EPOCHS, micro_batch_size, resolve_precision, total_steps
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import FinetuneConfig, PretrainConfig, TrainingConfig
from llmtrain.schema.tokenizer import (
    BPETokenizer,
    BytesTokenizer,
    FileTokenizer,
    TokenizerConfig,
    WordPieceTokenizer,
)
from llmtrain.task.base import TaskKind
from llmtrain.utils import dist
from llmtrain.utils.device import pick_device

SHOWN_LABELS = 12
"""Labels that are listed."""


def dry_run(config: PretrainConfig, context: Context) -> int:
    """Print batch arithmetic and parameter counts."""
    train = config.train
    vocab_size = config.model.vocab_size or expected_vocab_size(config.tokenizer)
    sized = dataclasses.replace(config.model, vocab_size=vocab_size or 1)
    objective = build_objective(config.objective, config.data, context.builders)
    model = build_model(sized, objective.build_head, context.builders)
    table = Table(box=None, show_header=False)
    tokens = train.batch_size * train.sequence_length
    flops = model.flops_per_token(train.sequence_length, objective.labelled_share)
    rows = {
        "batch": batch(config),
        "tokens per step": f"{train.batch_size} rows x {train.sequence_length} = {tokens:,}",
        "length": length(config, tokens),
        "vocabulary": vocabulary(vocab_size, config.tokenizer),
        "parameters": parameters(model, vocab_size is not None),
        "precision": resolve_precision(config.precision, pick_device(config.launch.device.value)).value,
        "FLOPs per token": f"{flops:.3e} (6 N + 12 L d T)",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    make_console().print(table)
    return 0


def dry_run_task(config: FinetuneConfig, context: Context) -> int:
    """Read the examples and the pretrained model's config, and print what the training would be.

    Raises:
        UserError: what training would find wrong before its first step.
    """
    assert config.init_from is not None
    pretrained = open_pretrained(config.init_from, context)
    shape, limit = adapted_model(pretrained.model, config), config.train.sequence_length
    kind: TaskKind = context.builders[type(config.task)]
    settled, training, validation = read_examples(kind, config.task, config.run.seed)
    task = kind.build(settled, shape.causal)
    samples = task.encode(training.items, pretrained.tokenizer, limit)
    lengths = np.array([len(sample.ids) for sample in samples])
    model = build_model(shape, task.build_head, context.builders)
    freeze(model, config.optim.freeze)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad)
    steps = total_steps(config.train, len(samples))
    labels = list(getattr(settled, "labels", []))
    rows = {
        "data": data_line(training, validation, lengths, limit),
        "labels": ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else ""),
        "batch": batch(config),
        "length": f"{steps:,} steps, {len(samples) / config.train.batch_size:.1f} in an epoch",
        "parameters": f"{model.num_parameters():,}, {learning:,} of them learn",
        "precision": resolve_precision(config.precision, pick_device(config.launch.device.value)).value,
        "metric": settled.metric,
    }
    table = Table(box=None, show_header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    console = make_console()
    console.print(table)
    for line in skipped("training", training) + skipped("validation", validation):
        console.print(f"warning: {line}", markup=False, soft_wrap=True)
    return 0


def batch(config: TrainingConfig) -> str:
    """How the global batch is shared out."""
    processes = config.launch.num_processes or dist.world_size()
    micro = micro_batch_size(config.train, processes)
    accumulation = config.train.batch_size // (micro * processes)
    return (
        f"{micro} micro batch x {accumulation} accumulation x {processes} data parallel"
        f" = {config.train.batch_size} rows"
    )


def expected_vocab_size(config: TokenizerConfig) -> int | None:
    """Tokens of the tokenizer as far as they are known without the data."""
    if isinstance(config, BytesTokenizer):
        return 257
    if isinstance(config, BPETokenizer | WordPieceTokenizer):
        return config.vocab_size
    if isinstance(config, FileTokenizer):
        return file_tokenizer(config).vocab_size
    return None


def vocabulary(vocab_size: int | None, config: TokenizerConfig) -> str:
    """How many tokens, and how certain that is."""
    if vocab_size is None:
        return "known when the data is read"
    return (
        f"at most {vocab_size:,}"
        if isinstance(config, BPETokenizer | WordPieceTokenizer)
        else f"{vocab_size:,}"
    )


def length(config: PretrainConfig, tokens_per_step: int) -> str:
    """The length as it was given, in steps where that is known before the data is read."""
    train = config.train
    if train.steps is not None:
        return f"{train.steps:,} steps = {train.steps * tokens_per_step:,} tokens"
    if train.tokens is not None:
        return f"{-(-train.tokens // tokens_per_step):,} steps = {train.tokens:,} tokens"
    return f"{train.epochs or DEFAULT_EPOCHS:g} epochs (steps are known when the data is read)"


def parameters(model: Assembled, whole: bool) -> str:
    """Number of parameters; without a vocabulary, of the blocks alone."""
    blocks = sum(parameter.numel() for parameter in model.backbone.blocks.parameters())
    if not whole:
        return f"{blocks:,} in the blocks; the embedding depends on the data"
    return f"{model.num_parameters():,} ({blocks:,} in the blocks)"
