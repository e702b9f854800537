"""`llmtrain pretrain --dry-run`: the arithmetic of a run, without reading data or training anything."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from llmtrain.data.tokenizer import file_tokenizer
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model
from llmtrain.objective.build import build_objective
from llmtrain.recipe.context import Context
from llmtrain.recipe.resolve import DEFAULT_EPOCHS, micro_batch_size, resolve_precision
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import PretrainConfig
from llmtrain.schema.tokenizer import (
    BPETokenizer,
    BytesTokenizer,
    FileTokenizer,
    TokenizerConfig,
    WordPieceTokenizer,
)
from llmtrain.utils import dist
from llmtrain.utils.device import pick_device


def dry_run(config: PretrainConfig, context: Context) -> int:
    """Print batch arithmetic and parameter counts."""
    processes = config.launch.num_processes or dist.world_size()
    train = config.train
    micro = micro_batch_size(train, processes)
    accumulation = train.batch_size // (micro * processes)
    vocab_size = config.model.vocab_size or expected_vocab_size(config.tokenizer)
    sized = dataclasses.replace(config.model, vocab_size=vocab_size or 1)
    objective = build_objective(config.objective, config.data, context.builders)
    model = build_model(sized, objective.build_head, context.builders)
    table = Table(box=None, show_header=False)
    tokens = train.batch_size * train.sequence_length
    flops = model.flops_per_token(train.sequence_length, objective.labelled_share)
    rows = {
        "batch": f"{micro} micro batch x {accumulation} accumulation x {processes} data parallel"
        f" = {train.batch_size} rows",
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
