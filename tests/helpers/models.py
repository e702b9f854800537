"""Small models and batches for tests."""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled, Backbone, Head
from llmtrain.model.build import build_model, materialise
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.model.initialise import initialise
from llmtrain.schema.model import BERTConfig, GPTConfig, ModelConfig


def small_config(**changes: object) -> GPTConfig:
    """A GPT that is small enough for any test."""
    settings: dict = {"num_layers": 2, "num_heads": 4, "dim": 32, "max_positions": 32, "vocab_size": 50}
    return GPTConfig(**(settings | changes))


def small_bert(**changes: object) -> BERTConfig:
    """A BERT that is small enough for any test, without dropout."""
    settings: dict = {"num_layers": 2, "num_heads": 4, "dim": 32, "max_positions": 64, "vocab_size": 50}
    return BERTConfig(**(settings | {"dropout": 0.0} | changes))


def make_model(
    config: ModelConfig, seed: int = 0, build_head: Callable[[Backbone], Head] = LanguageModelHead
) -> Assembled:
    """Built, given memory and initialised, on the CPU."""
    model = build_model(config, build_head)
    materialise(model, torch.device("cpu"))
    initialise(model, seed)
    return model


def random_batch(vocab: int = 50, rows: int = 2, length: int = 16, seed: int = 0) -> Batch:
    """Random tokens with the next token as label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=generator)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
