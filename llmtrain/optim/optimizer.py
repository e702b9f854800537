"""Optimizers, their parameter groups, and their state as named tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmtrain.schema.groups import AdamWConfig, OptimConfig


def parameter_groups(
    parameters: dict[str, nn.Parameter], config: OptimConfig, embeddings: set[str]
) -> list[dict[str, Any]]:
    """Two groups: matrices decay; norms, biases and (by default) embeddings do not.

    Args:
        parameters: name -> parameter, each once.
        config: `weight_decay` and `decay_embeddings` are used.
        embeddings: names that belong to embeddings.
    """

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2 and (config.decay_embeddings or name not in embeddings)

    decayed = [parameter for name, parameter in parameters.items() if decays(name, parameter)]
    plain = [parameter for name, parameter in parameters.items() if not decays(name, parameter)]
    return [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def embedding_names(model: nn.Module) -> set[str]:
    """Names of the parameters that embeddings own."""
    return {f"{owner}.weight" for owner, module in model.named_modules() if isinstance(module, nn.Embedding)}


def build_adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's AdamW in its fused form, which every device here has and which can skip a step itself."""
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


OPTIMIZERS: dict[type, Callable[[Any, list[dict[str, Any]]], torch.optim.Optimizer]] = {
    AdamWConfig: build_adamw
}
"""Optimizers."""


def build_optimizer(
    config: OptimConfig,
    model: nn.Module,
    builders: Mapping[type, Callable[..., torch.optim.Optimizer]] = OPTIMIZERS,
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a model, with its state already there (zeros)."""
    groups = parameter_groups(dict(model.named_parameters()), config, embedding_names(model))
    optimizer = builders[type(config)](config, groups)
    create_state(optimizer)
    return optimizer


def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state tensors now, so that loading and saving find the same names.

    A step with zero gradients and learning rate 0 changes no parameter; the step counters that it
    leaves behind are set back to 0.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def named_state(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state tensors under `<parameter>.<state>`, as references: loading writes into them.

    Raises:
        TypeError: the optimizer keeps something else than tensors, which would be lost.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the optimizer keeps {key} as {type(value).__name__}, not as a tensor")
            named[f"{name}.{key}"] = value
    return named


def scale_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to `factor` times the one that it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
