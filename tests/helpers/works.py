"""Small trainings of every kind, with batches whose label counts differ from row to row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.samples import PackedRow, Sample, pack_batch
from llmtrain.model.assembled import Output
from llmtrain.objective.build import Objective
from llmtrain.objective.causal import Causal
from llmtrain.objective.mlm_nsp import MLMNSP
from llmtrain.schema.adapt import LoRAConfig
from llmtrain.schema.model import (
    Activation,
    BERTConfig,
    GPTConfig,
    ModelConfig,
    Norm,
    Position,
    RotaryScaling,
    Scaling,
)
from llmtrain.schema.objective import MLMNSPConfig
from llmtrain.schema.task import (
    ClassificationTask,
    GenerationTask,
    Pool,
    QuestionAnsweringTask,
    TokenClassificationTask,
)
from llmtrain.task.classification import Classification
from llmtrain.task.generation import AnswerSample, Generation
from llmtrain.task.question_answering import QuestionAnswering
from llmtrain.task.token_classification import TokenClassification

ROWS, LENGTH, VOCAB = 8, 16, 50
"""Of the global batch and of the models; the padding of the vocabulary is all in the last share of it."""

SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "num_heads": 8,
    "dim": 32,
    "max_positions": LENGTH,
    "vocab_size": VOCAB,
    "vocab_multiple": 64,
    "init_std": 0.1,  # that nothing is so small that an error in it would not show
}


@dataclass(frozen=True)
class Work:
    """A training.

    Attributes:
        model: with its vocabulary.
        objective: pretraining or a task.
        batch: the global batch with a number; label counts differ from row to row.
        output: what to keep of predictions, where one process alone can be asked for them.
        freeze: patterns of what learns nothing.
        adapt: adapters of the model.
    """

    model: ModelConfig
    objective: Objective
    batch: Callable[[int], Batch]
    output: Output | None = None
    freeze: tuple[str, ...] = ()
    adapt: LoRAConfig | None = None


def text_batch(number: int) -> Batch:
    """Rows of several documents; the labels of some are few."""
    chooser = np.random.default_rng(number)
    rows = [[_sample(chooser, int(n)) for n in _lengths(chooser, 3, LENGTH)] for _ in range(ROWS)]
    batch = pack_batch([PackedRow(row) for row in rows], LENGTH, pad_id=0, max_samples=3)
    labels = batch.ids.roll(-1, 1)
    labels[:, -1] = IGNORE
    labels[chooser.integers(ROWS), 2:] = IGNORE
    labels[chooser.integers(ROWS)] = IGNORE
    return replace(batch, labels=labels, segments=None, first=None)


def plain_batch(number: int) -> Batch:
    """As `text_batch`, but nothing tells documents apart."""
    return replace(text_batch(number), documents=None, positions=None)


def pairs_batch(number: int) -> Batch:
    """Rows of up to two pairs of segments with a few masked tokens each."""
    chooser = np.random.default_rng(number)
    rows = [[_sample(chooser, int(n)) for n in _lengths(chooser, 2, LENGTH)] for _ in range(ROWS)]
    batch = pack_batch([PackedRow(row) for row in rows], LENGTH, pad_id=0, max_samples=2)
    selected, labels = _places(chooser, VOCAB)
    following = torch.from_numpy(chooser.integers(0, 2, (ROWS, 2)))
    following[chooser.integers(ROWS), 1] = IGNORE
    return replace(batch, selected=selected, labels=labels, sample_labels=following)


def example_batch(number: int) -> Batch:
    """A sample in each row, with labels of every kind: of tokens, of the sample; padding behind it."""
    chooser = np.random.default_rng(number)
    lengths = chooser.integers(3, LENGTH + 1, ROWS)
    rows = [PackedRow([_sample(chooser, int(n))]) for n in lengths]
    batch = pack_batch(rows, LENGTH, pad_id=0)
    selected, labels = _places(chooser, 3)
    kinds = torch.from_numpy(chooser.integers(0, 3, (ROWS, 1)))
    kinds[chooser.integers(ROWS)] = IGNORE
    return replace(batch, selected=selected, labels=labels, sample_labels=kinds)


def answer_batch(number: int) -> Batch:
    """A sample in each row, with the first and last token of an answer; not in all of them."""
    chooser = np.random.default_rng(number)
    spans = torch.from_numpy(np.sort(chooser.integers(0, 3, (ROWS, 2))))
    spans[chooser.integers(ROWS)] = IGNORE
    return replace(example_batch(number), selected=None, labels=spans, sample_labels=None)


def _sample(chooser: np.random.Generator, length: int) -> Sample:
    ids = chooser.integers(0, VOCAB, length)
    return Sample(ids, (np.arange(length) >= length // 2).astype(np.int64))


def _lengths(chooser: np.random.Generator, most: int, room: int) -> list[int]:
    """Of up to `most` samples that fit into a row."""
    ends = np.sort(chooser.choice(np.arange(2, room + 1), most, replace=False))
    return [int(n) for n in np.diff(ends, prepend=0)][: chooser.integers(1, most + 1)]


def _places(chooser: np.random.Generator, num_labels: int) -> tuple[Tensor, Tensor]:
    """Places of labels in each row, in order, and the labels; between none and all of them are there."""
    places = np.sort(np.stack([chooser.choice(LENGTH, 5, replace=False) for _ in range(ROWS)]))
    labels = chooser.integers(0, num_labels, places.shape)
    there = np.arange(5) < chooser.integers(0, 6, (ROWS, 1))
    return torch.from_numpy(places), torch.from_numpy(np.where(there, labels, IGNORE))


def conversation_batch(number: int) -> Batch:
    """Rows of several conversations, of whose tokens some are learned."""
    chooser = np.random.default_rng(number)
    rows = []
    for _ in range(ROWS):
        row = [_sample(chooser, int(n)) for n in _lengths(chooser, 3, LENGTH)]
        answers = [AnswerSample(**vars(one), answer=chooser.random(len(one.ids)) < 0.4) for one in row]
        rows.append(PackedRow(list[Sample](answers)))
    return Generation(GenerationTask()).batch(rows, LENGTH, 0)


def flat(scores: Tensor, batch: Batch) -> Tensor:
    """All scores of a row; those that stand for nothing are 0."""
    return scores.flatten(1).nan_to_num(neginf=0.0)


def gpt(**changes: Any) -> GPTConfig:
    return GPTConfig(**(SHAPE | changes))


def bert(**changes: Any) -> BERTConfig:
    return BERTConfig(**(SHAPE | {"dropout": 0.0} | changes))


LLAMA: dict[str, Any] = {
    "num_kv_heads": 4,
    "position": Position.rotary,
    "norm": Norm.rmsnorm,
    "activation": Activation.swiglu,
    "bias": False,
    "tie_embeddings": False,
}

QWEN: dict[str, Any] = LLAMA | {
    "query_key_norm": True,
    "head_dim": 6,
    "qkv_bias": True,
    "rotary_scaling": RotaryScaling(Scaling.llama3, 2.0, 8),
}
"""With what came after Llama."""

KINDS = ["a", "b", "c"]


def works() -> dict[str, Work]:
    """All trainings, by name."""
    classify = Classification(ClassificationTask(labels=KINDS), Pool.first)
    weighted = Classification(ClassificationTask(labels=KINDS, class_weights=[1.0, 2.0, 0.5]), Pool.mean)
    tag = TokenClassification(TokenClassificationTask(labels=KINDS), causal=False)
    tag.width = 5
    modern = {"norm_first": True, "position": Position.rotary, "bias": False, "num_segments": 0}
    return {
        "deep": Work(gpt(num_layers=4), Causal(True), text_batch),
        "deep_classify": Work(bert(num_layers=4), classify, example_batch, flat),
        "gpt": Work(gpt(), Causal(False), plain_batch),
        "llama": Work(gpt(**QWEN), Causal(True), text_batch),
        "window": Work(gpt(**LLAMA, window=5), Causal(True), text_batch),
        "plain_window": Work(gpt(window=5), Causal(False), plain_batch),
        "few_tokens": Work(gpt(vocab_size=20, vocab_multiple=64), Causal(True), _of_20),
        "bert": Work(bert(), MLMNSP(MLMNSPConfig()), pairs_batch),
        "modern_bert": Work(
            bert(**modern, activation=Activation.geglu, local_window=6, global_every=2),
            MLMNSP(MLMNSPConfig()),
            pairs_batch,
        ),
        "classify": Work(bert(), classify, example_batch, flat),
        "classify_decoder": Work(gpt(), weighted, example_batch, flat),
        "tag": Work(bert(), tag, example_batch, flat, freeze=("*embedding*", "*position*")),
        "probe": Work(bert(), classify, example_batch, flat, freeze=("backbone.*",)),
        "converse": Work(gpt(**LLAMA), Generation(GenerationTask()), conversation_batch),
        "answer": Work(bert(), QuestionAnswering(QuestionAnsweringTask()), answer_batch, flat),
    }


def _of_20(number: int) -> Batch:
    """Tokens of which all are in the first half of the padded vocabulary."""
    batch = text_batch(number)
    assert batch.labels is not None
    return replace(batch, ids=batch.ids % 20, labels=batch.labels.where(batch.labels < 0, batch.labels % 20))
