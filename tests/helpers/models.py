"""Small models and batches for tests."""

from __future__ import annotations

import torch

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled
from llmtrain.model.build import build_model, materialise
from llmtrain.model.initialise import initialise
from llmtrain.schema.groups import GPTConfig


def small_config(**changes: object) -> GPTConfig:
    """A GPT that is small enough for any test."""
    settings: dict = {"num_layers": 2, "num_heads": 4, "dim": 32, "max_positions": 32, "vocab_size": 50}
    return GPTConfig(**(settings | changes))


def make_model(config: GPTConfig, seed: int = 0) -> Assembled:
    """Built, given memory and initialised, on the CPU."""
    model = build_model(config)
    materialise(model, torch.device("cpu"))
    initialise(model, seed)
    return model


def random_batch(vocab: int = 50, rows: int = 2, length: int = 16, seed: int = 0) -> Batch:
    """Random tokens with the next token as label."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=generator)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
