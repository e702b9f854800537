"""Examples of a task: read, split into those to train and those to validate on, and identified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.data.tokenizer import Tokenizer
from llmtrain.schema.task import TaskConfig
from llmtrain.task.base import Examples, TaskKind
from llmtrain.task.files import task_paths
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import file_sha256
from llmtrain.utils.seed import Permutation


def read_examples(kind: TaskKind, config: TaskConfig, seed: int) -> tuple[TaskConfig, Examples, Examples]:
    """The config with labels resolved, examples to train and examples to validate on.

    Without validation files a share of the training examples, drawn by seed, is held out.
    """
    training = kind.read(config, task_paths(config, config.paths, "task.paths"), labelled=True)
    if not training.items:
        raise DataError("there are no examples to train on", "task.paths", "give files with examples")
    config = kind.resolve(config, training)
    if config.validation_paths:
        paths = task_paths(config, config.validation_paths, "task.validation_paths")
        return config, training, kind.read(config, paths, labelled=True)
    num = len(training.items)
    held_out = min(int(num * config.validation_fraction), num - 1)
    order = Permutation(num, seed, "validation examples")(np.arange(num))
    chosen = set(order[:held_out].tolist())
    validation = Examples([item for i, item in enumerate(training.items) if i in chosen])
    training.items = [item for i, item in enumerate(training.items) if i not in chosen]
    return config, training, validation


def examples_identity(config: TaskConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Hashes of the files and of the tokenizer."""
    training, validation = "task.paths", "task.validation_paths"
    files = {training: config.paths, validation: config.validation_paths}
    hashes = {
        key: hash_files(task_paths(config, names, key)) if names else "" for key, names in files.items()
    }
    return {
        "training examples": hashes[training],
        "validation examples": hashes[validation],
        "tokenizer": tokenizer.sha256,
    }


def hash_files(paths: Sequence[Path]) -> str:
    """One hash for the contents of files."""
    return hashlib.sha256(" ".join(file_sha256(path) for path in paths).encode()).hexdigest()[:16]
