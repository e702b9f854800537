"""FSDP2: weights, gradients and optimizer state are shared out (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from llmtrain.parallel.mesh import SHARDED, Mesh


def sharding_mesh(mesh: Mesh) -> DeviceMesh:
    """Along which weights are shared out; with replicas there is a second axis, in front (HSDP)."""
    if mesh.degrees.dp_replicate > 1:
        return mesh.devices["dp_replicate", SHARDED]
    return mesh.devices[SHARDED]


def shard(root: nn.Module, blocks: Iterable[nn.Module], mesh: Mesh, precision: str, reshard: bool) -> None:
    """Shard each block, and the rest of `root` together.

    Gradients are summed up, not averaged: our losses are divided by counts of the whole batch. In bf16 the
    weights of blocks are gathered as bf16, as autocast would round those of products anyway; those of norms
    in blocks are rounded too, which one process does not do. What is not in a block, and all sums of
    gradients, stay fp32.

    Args:
        root: has the blocks in it.
        blocks: gathered one by one.
        mesh: the processes.
        precision: of the training step.
        reshard: give up gathered weights of blocks after the forward pass.
    """
    devices = sharding_mesh(mesh)
    low = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=devices, reshard_after_forward=reshard, mp_policy=policy)
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(root, mesh=devices, reshard_after_forward=False, mp_policy=whole)
    for module in sharded_modules(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no factor


def sharded_modules(root: nn.Module) -> Iterator[FSDPModule]:
    """The modules whose weights are gathered together, `root` first."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            yield module


def give_up(roots: Iterable[nn.Module]) -> None:
    """Let go of gathered weights that no backward pass is going to release."""
    for root in roots:
        for module in sharded_modules(root):
            module.reshard()
