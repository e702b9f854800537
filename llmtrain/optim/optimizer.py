"""Optimizers, their parameter groups, and their state as named tensors."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmtrain.optim.adafactor import Adafactor
from llmtrain.optim.lion import Lion
from llmtrain.optim.muon import Muon
from llmtrain.schema.optim import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    OptimConfig,
    Products,
    SGDConfig,
)
from llmtrain.utils.errors import ConfigError


def parameter_groups(
    parameters: dict[str, nn.Parameter], config: OptimConfig, embeddings: set[str], num_blocks: int
) -> list[dict[str, Any]]:
    """Groups of one weight decay and one rate: matrices decay; norms, biases and (by default) embeddings do
    not; with `layer_decay` the rate of a group falls with its distance from the head. Where the optimizer
    tells them apart, the matrices of the blocks are groups with `hidden`.

    Args:
        parameters: name -> parameter, each once; those that are frozen are left out.
        config: `weight_decay`, `decay_embeddings`, the rate and `layer_decay` are used.
        embeddings: names that belong to embeddings.
        num_blocks: of the whole model; in a pipeline some are elsewhere.
    """
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and (config.decay_embeddings or name not in embeddings)
            distance = distance_from_head(name, num_blocks) if config.layer_decay < 1 else 0
            hidden = config.tells_hidden and parameter.ndim == 2 and block_number(name) >= 0
            groups.setdefault((decays, distance, hidden), []).append(parameter)
    nothing: dict[str, Any] = {"params": [], "lr": config.lr}  # a stage of a pipeline may be all frozen
    return [
        {
            "params": groups[decays, distance, hidden],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr": config.rate(hidden) * config.layer_decay**distance,
        }
        | ({"hidden": hidden} if config.tells_hidden else {})
        for decays, distance, hidden in sorted(groups, key=lambda key: (not key[0], key[1], key[2]))
    ] or [nothing]


def block_number(name: str) -> int:
    """Number of the block that a parameter is in, or -1."""
    match = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def distance_from_head(name: str, num_blocks: int) -> int:
    """How far below the head a parameter works: 0 in the head and in a norm above all blocks, 1 in the last
    block, and so on down to the embeddings (Clark et al. 2020, "ELECTRA", layer-wise decay)."""
    number = block_number(name)
    if number >= 0:
        return num_blocks - number
    return 0 if name.startswith(("head.", "backbone.norm.")) else num_blocks + 1


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Let some of the parameters learn nothing; a process that does not have one passes it over."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def frozen_names(model: nn.Module, patterns: Sequence[str]) -> set[str]:
    """Names of the parameters that match one of the patterns; of a whole model.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise ConfigError(
                f"no parameter matches {pattern!r}",
                "optim.freeze",
                f"names look like {', '.join(names[:: max(1, len(names) // 6)])}",
            )
        frozen.update(matching)
    if len(frozen) == len(names):
        raise ConfigError("everything is frozen", "optim.freeze", "leave something to learn, such as head.*")
    return frozen


def embedding_names(model: nn.Module) -> set[str]:
    """Names of the parameters that embeddings own."""
    return {f"{owner}.weight" for owner, module in model.named_modules() if isinstance(module, nn.Embedding)}


def build_adamw(config: AdamWConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's AdamW in its fused form, which every device here has and which can skip a step itself."""
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def build_adam(config: AdamConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's Adam, fused."""
    return torch.optim.Adam(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def build_sgd(config: SGDConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's SGD, fused, which for shares of tensors it is not."""
    shared = any(hasattr(one, "to_local") for group in groups for one in group["params"])
    form = {"foreach": True} if shared else {"fused": True}
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, **form)


def build_adafactor(config: AdafactorConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Ours: torch's does not take shares of matrices."""
    return Adafactor(groups, config.lr, config.beta2_decay, config.clip_update)


def build_lion(config: LionConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Ours: torch has none."""
    return Lion(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def build_muon(config: MuonConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Ours: torch's takes one matrix after another, no shares of matrices, and nothing else."""
    products = torch.float32 if config.products is Products.fp32 else torch.bfloat16
    return Muon(groups, config.momentum, products, (config.beta1, config.beta2), config.eps)


OPTIMIZERS: dict[type, Callable[[Any, list[dict[str, Any]]], torch.optim.Optimizer]] = {
    AdamWConfig: build_adamw,
    AdamConfig: build_adam,
    SGDConfig: build_sgd,
    AdafactorConfig: build_adafactor,
    LionConfig: build_lion,
    MuonConfig: build_muon,
}
"""Optimizers."""


def build_optimizer(
    config: OptimConfig,
    model: nn.Module,
    builders: Mapping[type, Callable[..., torch.optim.Optimizer]] = OPTIMIZERS,
    num_blocks: int | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a model that learn, with its state already there (zeros).

    Args:
        config: of the optimizer.
        model: whose parameters are here.
        builders: of optimizers.
        num_blocks: of the whole model. Default: what is here is the whole.
    """
    parameters = dict(model.named_parameters())
    num_blocks = num_blocks or 1 + max((block_number(name) for name in parameters), default=-1)
    groups = parameter_groups(parameters, config, embedding_names(model), num_blocks)
    optimizer = builders[type(config)](config, groups)
    create_state(optimizer)
    return optimizer


def create_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state tensors now, so that loading and saving find the same names.

    A step with zero gradients and learning rate 0 changes no parameter; the step counters that it
    leaves behind are set back to 0. Parameters whose state is already there are passed over.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            if parameter not in optimizer.state:
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
