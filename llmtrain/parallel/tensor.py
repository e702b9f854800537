"""Tensor parallel with sequence parallel: a model's own plan, carried out by torch's DTensor."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from llmtrain.model.assembled import Assembled
from llmtrain.model.build import tie, tied_names
from llmtrain.model.heads.vocabulary import VocabularyProjection
from llmtrain.model.kernels.linear_cross_entropy import VocabularyShard
from llmtrain.model.layers.lora import LoRALinear, Product
from llmtrain.model.plan import Split
from llmtrain.utils.errors import ConfigError

TOKENS = 1
"""Dimension of (B, T, D) that is shared out between layers."""

HEADS = 1
"""Dimension of (B, H, T, K) that is shared out inside attention."""


class Gather(ParallelStyle):
    """The first input, which holds a share of the tokens, is gathered to all of them.

    Args:
        whole: go on with a plain tensor: every process then does the same with it, and the gradient that
            comes back is the same everywhere. Otherwise gradients of shares are summed up.
    """

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def gather(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            own = DTensor.from_local(inputs[0], device_mesh, [Shard(TOKENS)], run_check=False)
            every: Tensor = own.redistribute(placements=[Replicate()])
            return (every.to_local() if self.whole else every), *inputs[1:]  # type: ignore[attr-defined]

        module.register_forward_pre_hook(gather)
        return module


class Columns(ColwiseParallel):
    """A linear layer with a share of the output features; of an adapter A is whole, B shared likewise."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        super()._partition_linear_fn(name, module, device_mesh)
        if isinstance(module, LoRALinear):
            place(module, "lora_A", device_mesh, Replicate())
            module.spread = Spread(device_mesh, whole=(True, True, False), change=Shard(-1))


class Rows(RowwiseParallel):
    """A linear layer with a share of the input features; of an adapter A is shared likewise, B whole."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        super()._partition_linear_fn(name, module, device_mesh)
        if isinstance(module, LoRALinear):
            place(module, "lora_A", device_mesh, Shard(1))
            place(module, "lora_B", device_mesh, Replicate())
            module.spread = Spread(device_mesh, whole=(False, False, True), change=Partial())


def place(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    """Share out a parameter of a module, which may be shared out otherwise by now, without memory yet."""
    whole = torch.empty(module.get_parameter(name).shape, device="meta")
    shared = distribute_tensor(whole, mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(shared))


class Spread:
    """The product of an adapter, in which each process multiplies its own shares: no messages.

    Of what is whole in every process (an input, A or B) each finds a part of the gradient, and the parts are
    summed up where they are needed. Dropout may so differ between the processes.

    Args:
        mesh: the processes.
        whole: which of input, A and B are whole in every process; the others are shared out.
        change: placement of the result.
    """

    def __init__(self, mesh: DeviceMesh, whole: tuple[bool, bool, bool], change: Placement) -> None:
        self.mesh, self.whole, self.change = mesh, whole, change

    def __call__(self, product: Product, x: DTensor, a_RI: DTensor, b_OR: DTensor) -> Tensor:
        """The change of the output, as it is shared out; see `LoRALinear`."""
        own = [
            one.to_local(grad_placements=[Partial()] if whole else None)
            for one, whole in zip((x, a_RI, b_OR), self.whole, strict=True)
        ]
        change: Tensor = DTensor.from_local(product(*own), self.mesh, [self.change], run_check=False)
        return change


class Lookup(RowwiseParallel):
    """An embedding with a share of the vocabulary; what it gives has arrived.

    A tensor that is still on its way must not enter a compiled block: its gradient would be wrong.
    """

    def __init__(self) -> None:
        super().__init__(input_layouts=Replicate(), output_layouts=Shard(TOKENS))

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        module = super()._apply(module, device_mesh)
        module.register_forward_hook(
            lambda module, inputs, output: (
                output.clone() if isinstance(output, AsyncCollectiveTensor) else output
            )
        )
        return module


class Replicated(ParallelStyle):
    """Whole parameters in every process, as DTensors like all others.

    Args:
        own_tokens: of an input that holds all tokens, take the own share.
    """

    def __init__(self, own_tokens: bool = False) -> None:
        super().__init__()
        self.placement = Shard(TOKENS) if own_tokens else Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def take(module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            every = DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)
            return every.redistribute(placements=[self.placement]), *inputs[1:]

        def give(module: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
            return outputs.to_local()

        return distribute_module(module, device_mesh, None, take, give)


class Vocabulary(ParallelStyle):
    """Rows of weight and bias are shared out; the module is told which are its own."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, VocabularyProjection)
        for name, parameter in list(module.named_parameters(recurse=False)):
            rows = distribute_tensor(parameter, device_mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(rows, requires_grad=parameter.requires_grad))
        start = module.out_features // device_mesh.size() * device_mesh.get_local_rank()
        module.shard = VocabularyShard(device_mesh.get_group(), start, module.vocab_size)
        return module


def style(split: Split) -> ParallelStyle:
    """How torch does what a plan asks for."""
    styles: dict[Split, Callable[[], ParallelStyle]] = {
        Split.gather: partial(Gather, whole=False),
        Split.gather_whole: partial(Gather, whole=True),
        Split.columns: Columns,
        Split.rows: partial(Rows, output_layouts=Shard(TOKENS)),
        Split.lookup: Lookup,
        Split.vocabulary: Vocabulary,
        Split.own_tokens: partial(SequenceParallel, use_local_output=True),
        Split.own_heads: partial(SequenceParallel, sequence_dim=HEADS, use_local_output=True),
        Split.own_lookup: partial(Replicated, own_tokens=True),
        Split.whole: Replicated,
    }
    return styles[split]()


def share_tensors(model: Assembled, mesh: DeviceMesh) -> None:
    """Share out a model over the processes of a one-dimensional mesh, as it declares; ties stay tied.

    Raises:
        ConfigError: backbone or head has no plan.
    """
    ties = tied_names(model)
    for prefix, part in (("backbone", model.backbone), ("head", model.head)):
        plan = part.tensor_plan()
        if plan is None:
            raise ConfigError(
                f"{type(part).__name__} does not say how its tensors can be shared out",
                "parallel.tp",
                "give parallel.tp=1",
            )
        for pattern, split in plan.items():
            for name, module in part.named_modules():
                # An Identity stands where a family has no norm.
                if fnmatch.fnmatchcase(name, pattern) and not isinstance(module, nn.Identity):
                    parallelize_module(module, mesh, style(split))
        left = [name for name, one in part.named_parameters() if not isinstance(one, DTensor)]
        assert not left, f"the plan of {prefix} leaves out {left}"
    tie(model, ties)
    if mesh.size() > 1:
        own = mesh.get_local_rank()
        model.head.register_forward_pre_hook(lambda module, inputs: same_dropout(own))


def same_dropout(tp_rank: int) -> None:
    """Let every process draw the same from here on.

    Between layers each draws for its own tokens, from a seed with its number in the lowest bits (see
    `Step`); a head works on all tokens in every process, and has to drop the same.
    """
    torch.manual_seed(torch.initial_seed() ^ tp_rank ^ HEAD)


HEAD = 1 << 62
"""Tells the draws of a head from those before it."""
