"""Examples of a task: read, split into those to train and those to validate on, and identified."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.data.fill import Poll
from llmtrain.data.samples import Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.schema.task import GenerationTask, QuestionAnsweringTask, TaskConfig, TooLong
from llmtrain.task.base import Examples, TaskKind, nothing_to_ask
from llmtrain.task.files import task_paths
from llmtrain.utils.errors import DataError
from llmtrain.utils.io import file_sha256
from llmtrain.utils.seed import Permutation

UNKNOWN_SHARE = 0.05
"""Share of unknown tokens in the examples above which there is a warning."""


def read_examples(
    kind: TaskKind, config: TaskConfig, seed: int, poll: Poll = nothing_to_ask
) -> tuple[TaskConfig, Examples, Examples]:
    """The config with labels resolved, examples to train and examples to validate on.

    Without validation files a share of the training examples, drawn by seed, is held out. `poll` is called
    often and may raise to give up.
    """
    training = kind.read(config, task_paths(config, config.paths, "task.paths"), labelled=True, poll=poll)
    if not training.items:
        raise DataError("there are no examples to train on", "task.paths", "give files with examples")
    config = kind.resolve(config, training)
    if config.validation_paths:
        paths = task_paths(config, config.validation_paths, "task.validation_paths")
        return config, training, kind.read(config, paths, labelled=True, poll=poll)
    num = len(training.items)
    held_out = min(int(num * config.validation_fraction), num - 1)
    order = Permutation(num, seed, "validation examples")(np.arange(num))
    chosen = set(order[:held_out].tolist())
    validation = Examples([item for i, item in enumerate(training.items) if i in chosen])
    training.items = [item for i, item in enumerate(training.items) if i not in chosen]
    return config, training, validation


def cut_texts(config: TaskConfig, samples: Sequence[Sample], which: str = "") -> list[str]:
    """A warning where examples (`which` of them) were too long: how many, and how long the longest was."""
    cut = [sample for sample in samples if sample.cut]
    if not cut:
        return []
    if isinstance(config, QuestionAnsweringTask):
        longest = config.max_question_length + max(sample.cut for sample in cut)
        what, setting = "questions", f"task.max_question_length={config.max_question_length}"
    else:
        longest = max(len(sample.ids) + sample.cut for sample in cut)
        what, setting = "examples", f"train.sequence_length={max(len(sample.ids) for sample in cut)}"
    return [f"{which}{what} cut to {setting}: {len(cut):,}, the longest of {longest:,} tokens"]


def left_out(config: TaskConfig, examples: Examples, samples: Sequence[Sample], which: str = "") -> list[str]:
    """A warning where examples (`which` of them) have no sample, for want of room."""
    missing = len(examples.items) - len({sample.number for sample in samples})
    if not isinstance(config, GenerationTask) or not missing:
        return []
    why = "too long for" if config.too_long is TooLong.skip else "without the begin of an answer within"
    return [f"{which}examples left out: {missing:,}, {why} train.sequence_length"]


def unknown_share(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[str]:
    """A warning where the tokenizer does not know much of the examples, as with another script."""
    total = sum(len(sample.ids) for sample in samples)
    unknown = sum(int((sample.ids == tokenizer.unknown_id).sum()) for sample in samples)
    if tokenizer.unknown_id is None or unknown <= UNKNOWN_SHARE * total:
        return []
    share = f"{100 * unknown / total:.1f} %"
    return [f"{share} of the tokens are unknown to the tokenizer of the model: was it made for other text?"]


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
