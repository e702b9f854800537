"""From a model's config to a module on the meta device, and from there to real memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from llmtrain.model.assembled import Assembled
from llmtrain.model.gpt import GPT
from llmtrain.model.heads import LanguageModelHead
from llmtrain.schema.groups import GPTConfig, ModelConfig


def build_gpt(config: GPTConfig) -> Assembled:
    """GPT with a language-model head."""
    backbone = GPT(config)
    assert config.vocab_size is not None
    embedding = backbone.embedding
    head = LanguageModelHead(config.dim, config.vocab_size, embedding.num_embeddings)
    if config.tie_embeddings:
        head.projection.weight = embedding.weight
    return Assembled(backbone, head)


MODELS: dict[type, Callable[[Any], Assembled]] = {GPTConfig: build_gpt}
"""Model families."""


def build_model(
    config: ModelConfig, builders: Mapping[type, Callable[[Any], Assembled]] = MODELS
) -> Assembled:
    """The model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return builders[type(config)](config)


def materialise(model: Assembled, device: torch.device) -> None:
    """Give a model from the meta device memory (not yet filled) on a device; ties stay tied."""
    ties = tied_names(model)
    model.to_empty(device=device)
    for first, other in ties:
        owner, _, leaf = other.rpartition(".")
        setattr(model.get_submodule(owner), leaf, model.get_parameter(first))


def tied_names(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs (first name, other name) of parameters that are one."""
    seen: dict[int, str] = {}
    pairs = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            pairs.append((seen[id(parameter)], name))
        seen.setdefault(id(parameter), name)
    return pairs
