"""From a model's config to a module on the meta device, and from there to real memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmtrain.model.assembled import Assembled, Backbone, Head
from llmtrain.model.bert import BERT
from llmtrain.model.gpt import GPT
from llmtrain.schema.model import BERTConfig, GPTConfig, ModelConfig

MODELS: dict[type, Callable[[Any], Backbone]] = {GPTConfig: GPT, BERTConfig: BERT}
"""Model families: the backbone for a config."""


def build_model(
    config: ModelConfig,
    build_head: Callable[[Backbone], Head],
    builders: Mapping[type, Callable[[Any], Backbone]] = MODELS,
) -> Assembled:
    """The model on the meta device: shapes without memory.

    Args:
        config: of the backbone, with `vocab_size` resolved.
        build_head: `Objective.build_head`: what is learned decides the head.
        builders: the families.
    """
    with torch.device("meta"), Undrawn():
        backbone = builders[type(config)](config)
        return Assembled(backbone, build_head(backbone))


class Undrawn(TorchFunctionMode):
    """Modules that are made leave their weights undrawn: they have no memory yet, and come to theirs later.

    The first draw on the meta device makes PyTorch import its compiler, which takes more than a second.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for each function of PyTorch."""
        if func is torch.nn.init.normal_:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give a model from the meta device memory (not yet filled) on a device; ties stay tied."""
    ties = tied_names(model)
    model.to_empty(device=device)
    tie(model, ties)


def tie(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Let pairs (first name, other name) be one parameter, the first."""
    for first, other in pairs:
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
