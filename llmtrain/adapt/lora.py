"""Putting adapters into a model, and folding them into its weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmtrain.checkpoint.weights import Weights
from llmtrain.model.assembled import Assembled
from llmtrain.model.initialise import fill
from llmtrain.model.layers.lora import LoRALinear, is_adapter
from llmtrain.schema.adapt import AdaptConfig, LoRAConfig
from llmtrain.utils.errors import ConfigError


def add_adapters(model: Assembled, config: AdaptConfig | None) -> None:
    """Replace linear layers of the blocks by adapted ones, in place.

    What a model declares about its layers goes on to hold, since they keep their names.

    Args:
        model: on the meta device, before it is laid out.
        config: None adds nothing.

    Raises:
        ConfigError: a pattern matches no layer.
    """
    if config is None:
        return
    assert isinstance(config, LoRAConfig), config
    for name in matching(model, config.targets):
        parent, _, leaf = name.rpartition(".")
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        with layer.weight.device:
            adapted = LoRALinear(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                config.rank,
                config.scale,
                config.dropout,
            )
        setattr(model.get_submodule(parent), leaf, adapted)


def matching(model: Assembled, patterns: list[str]) -> list[str]:
    """Names of the linear layers of the blocks that patterns of their ends match.

    Raises:
        ConfigError: a pattern matches none.
    """
    names = [
        f"backbone.blocks.{name}"
        for name, module in model.backbone.blocks.named_modules()
        if type(module) is nn.Linear
    ]
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, f"*.{pattern}") or fnmatch.filter(names, pattern)
        if not found:
            ends = dict.fromkeys(".".join(name.split(".")[3:]) for name in names)
            raise ConfigError(
                f"no linear layer of the blocks matches {pattern!r}",
                "adapt.targets",
                f"layers are {', '.join(ends)}; patterns such as mlp.* do too",
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


class MergedWeights:
    """The weights of a model with adapters as those of the same model without: W + scale * B A.

    Args:
        base: weights that the adapters were made for, whole.
        own: adapters, and parameters that are not the base's (a new head).
        scale: of the change.
        carried: only parameters of the base whose names start so are taken over.
    """

    def __init__(self, base: Weights, own: Weights, scale: float, carried: tuple[str, ...] = ("",)) -> None:
        self.base, self.own, self.scale = base, own, scale
        extra = {name: shape for name, shape in own.shapes.items() if not is_adapter(name)}
        taken = {name: shape for name, shape in base.shapes.items() if name.startswith(carried)}
        self._shapes = taken | extra

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """See `Weights`."""
        return self._shapes

    @torch.no_grad()
    def fill(self, parameters: Mapping[str, Tensor]) -> None:
        """See `Weights`; of the changed ones each process reads the whole, one after the other."""
        own = {name for name in parameters if name in self.own.shapes}
        self.own.fill({name: parameters[name] for name in own})
        changed = {name for name in parameters if self._adapter(name) is not None} - own
        self.base.fill({name: one for name, one in parameters.items() if name not in own | changed})
        for name in changed:
            fill(parameters[name], self.merged(name))

    def read(self) -> dict[str, Tensor]:
        """All of them, whole, on the CPU, in fp32."""
        whole = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        self.fill(whole)
        return whole

    def merged(self, name: str) -> Tensor:
        """A changed weight, whole, in fp32; products and sums are made in fp64 and rounded once."""
        adapter = self._adapter(name)
        assert adapter is not None
        parts = {key: torch.empty(self.own.shapes[key]) for key in adapter}
        self.own.fill(parts)
        weight = {name: torch.empty(self.base.shapes[name])}
        self.base.fill(weight)
        a_RI, b_OR = (parts[key].double() for key in adapter)
        return (weight[name].double() + self.scale * (b_OR @ a_RI)).float()

    def _adapter(self, name: str) -> tuple[str, str] | None:
        """Names of A and B of a weight, or None where it has none."""
        module, _, leaf = name.rpartition(".")
        keys = f"{module}.lora_A", f"{module}.lora_B"
        return keys if leaf == "weight" and keys[0] in self.own.shapes else None
