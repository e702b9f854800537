"""Decides what the config left open (`null`, `auto`); done once, and stored with the run."""

from __future__ import annotations

import dataclasses
import math
import shutil

import torch

from llmtrain.model.assembled import Assembled
from llmtrain.schema.fields import Compile, Precision, TrainConfig
from llmtrain.schema.layout import layout_problems
from llmtrain.schema.model import ModelConfig
from llmtrain.schema.parallel import Degrees, ParallelConfig, microbatch_rows, resolve_degrees
from llmtrain.schema.roots import TrainingConfig
from llmtrain.utils.device import default_precision
from llmtrain.utils.errors import ConfigError

DEFAULT_EPOCHS = 5.0
"""Length of a run that does not say how long it shall be."""

COMPILE_PAYS_FLOPS = 2e14
"""Training FLOPs of a process from which compiling (10 to 30 seconds) is earned back on a CPU."""


def resolve_model(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """The model with its vocabulary.

    Raises:
        ConfigError: the config asks for fewer tokens than the tokenizer has.
    """
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise ConfigError(
            f"the model has {model.vocab_size} tokens, the tokenizer {vocab_size}",
            "model.vocab_size",
            f"leave model.vocab_size out, or give at least {vocab_size}",
        )
    return dataclasses.replace(model, vocab_size=model.vocab_size or vocab_size)


def resolve_layout(config: TrainingConfig, world: int, model: ModelConfig, sequence_length: int) -> Degrees:
    """The degrees of parallelism for a number of processes.

    Raises:
        ConfigError: with everything in the layout that does not go with the processes, the model, the batch
            or the rows.
    """
    problems = layout_problems(config, world, model, sequence_length)
    if problems:
        raise ConfigError(problems)
    return resolve_degrees(config.parallel, world)[0]


def head_in_blocks(model: Assembled, labelled_share: float) -> float:
    """What the head costs, in blocks; balances a pipeline.

    Args:
        model: whole.
        labelled_share: labels for each token.
    """
    weights = sum(parameter.numel() for parameter in model.backbone.blocks.parameters())
    block = 6 * weights / max(1, len(model.backbone.blocks))
    return labelled_share * model.head.flops_per_label() / max(1.0, block)


def micro_batch_size(train: TrainConfig, parallel: ParallelConfig, degrees: Degrees) -> int:
    """Rows that a process takes through the model at once; see `microbatch_rows`.

    Raises:
        ConfigError: the batch cannot be shared out evenly, or has too few rows to keep a pipeline busy.
    """
    rows = microbatch_rows(train, parallel, degrees)
    if rows is None:
        micro = f" in microbatches of {train.micro_batch_size}" if train.micro_batch_size else ""
        stages = f", which need {degrees.pp} or more of them" if degrees.pp > 1 else ""
        stages = stages.replace("or more", "or a multiple") if parallel.schedule.interleaves else stages
        fitting = [size for size in range(1, train.batch_size + 1) if train.batch_size % size == 0]
        raise ConfigError(
            f"a batch of {train.batch_size} rows cannot be shared by {degrees.data} processes{micro}{stages}",
            "train.batch_size, train.micro_batch_size, launch.num_processes",
            f"processes x micro batch must divide the batch: {', '.join(map(str, fitting))}",
        )
    return rows


def total_steps(train: TrainConfig, rows_per_epoch: int) -> int:
    """Length of the run in optimizer steps, at least 1."""
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / (train.batch_size * train.sequence_length))
    epochs = DEFAULT_EPOCHS if train.epochs is None else train.epochs
    return max(1, round(epochs * rows_per_epoch / train.batch_size))


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """A definite number format for this hardware.

    Raises:
        ConfigError: the device cannot do it.
    """
    if precision is Precision.auto:
        return Precision(default_precision(device))
    if device.type == "mps" and precision is Precision.bf16:
        raise ConfigError("bf16 is not offered on mps", "precision", "use precision=fp32 or precision=fp16")
    return precision


def evaluation_batch_size(config: TrainingConfig, degrees: Degrees) -> int:
    """Rows that one process evaluates at once.

    Raises:
        ConfigError: see `micro_batch_size`.
    """
    return config.eval.batch_size or 2 * micro_batch_size(config.train, config.parallel, degrees)


def resolve_compile(compile: Compile, device: torch.device, flops: float) -> Compile:
    """Whether to compile: on CUDA always; on a CPU when the run is long and there is a C++ compiler.

    Args:
        compile: what the config says.
        device: of the workers.
        flops: operations of the whole training, for one process.
    """
    if compile is not Compile.auto:
        return compile
    if device.type == "cuda":
        return Compile.always
    compiler = shutil.which("g++") or shutil.which("clang++")
    pays = device.type == "cpu" and compiler is not None and flops > COMPILE_PAYS_FLOPS
    return Compile.always if pays else Compile.never
