"""transformers' BERT beside ours: the same random weights, and the same samples in every arrangement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from llmtrain.checkpoint.hf.bert import BERT_FAMILY
from llmtrain.checkpoint.hf.read import pad_vocabulary, translate
from llmtrain.checkpoint.weights import Stored
from llmtrain.data.batch import Batch
from llmtrain.data.samples import PackedRow, Sample, pack_batch
from llmtrain.model.assembled import Assembled, Backbone, Head
from llmtrain.schema.model import BERTConfig
from tests.helpers.models import make_model

LENGTHS = (7, 12, 4)
"""Tokens of the samples."""

VOCAB = 211
SHAPE = {
    "num_layers": 3,
    "num_heads": 4,
    "dim": 48,
    "hidden_dim": 96,
    "vocab_size": VOCAB,
    "max_positions": 64,
}


def config(**changes: Any) -> BERTConfig:
    """Our config of the shape that `reference` has, without dropout."""
    return BERTConfig(**(SHAPE | {"dropout": 0.0} | changes))


def reference(name: str, seed: int = 0, **changes: Any) -> Any:
    """A model class of transformers with random weights, biases among them, in evaluation mode."""
    import transformers

    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, name)(transformers.BertConfig(**(settings | changes))).eval()
    with torch.no_grad():  # biases start at 0 and norms at 1: give them values that matter
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def copy_of(model: Any, build_head: Callable[[Backbone], Head], **changes: Any) -> Assembled:
    """Our model with the weights of theirs; every parameter must come from there."""
    ours = make_model(config(**changes), seed=1, build_head=build_head).eval()
    state = {key: Stored(value.shape, value.clone) for key, value in model.state_dict().items()}
    tensors, unknown = translate(state, BERT_FAMILY, config(**changes), {})
    assert unknown == []
    pad_vocabulary(tensors, config(**changes), BERT_FAMILY)
    if not any(name.startswith("head.pooler") for name, _ in ours.named_parameters()):
        tensors = {name: value for name, value in tensors.items() if not name.startswith("head.pooler")}
    wanted = dict(ours.named_parameters())
    assert wanted.keys() == tensors.keys()
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name].read())
    return ours


def samples(seed: int = 0) -> list[Sample]:
    """Random samples of two segments each."""
    generator = np.random.default_rng(seed)
    return [
        Sample(generator.integers(0, VOCAB, n), (np.arange(n) >= (n + 1) // 2).astype(np.int64), number)
        for number, n in enumerate(LENGTHS)
    ]


def padded(length: int = 14) -> Batch:
    """One sample in a row."""
    return pack_batch([PackedRow([sample]) for sample in samples()], length, pad_id=0)


def packed(length: int = 26) -> Batch:
    """All samples in one row."""
    return pack_batch([PackedRow(samples())], length, pad_id=0, max_samples=len(LENGTHS) + 1)


def alone() -> list[Batch]:
    """Each sample by itself without padding, and without document numbers."""
    batches = [pack_batch([PackedRow([sample])], len(sample.ids), pad_id=0) for sample in samples()]
    for batch in batches:
        batch.documents = batch.positions = None
    return batches


def theirs(batch: Batch) -> dict[str, torch.Tensor]:
    """A padded batch as arguments of transformers."""
    assert batch.documents is not None
    assert batch.segments is not None
    return {
        "input_ids": batch.ids,
        "attention_mask": (batch.documents == 0).long(),
        "token_type_ids": batch.segments,
    }


def by_sample(batch: Batch, values: torch.Tensor) -> list[torch.Tensor]:
    """What stands at the tokens of each sample, (n, ...), whatever the arrangement."""
    if batch.documents is None:
        return list(values)
    found = []
    for row, documents in enumerate(batch.documents):
        last = int(documents.max()) + (batch.num_tokens == batch.ids.numel())
        found += [values[row, documents == number] for number in range(last)]
    return found
