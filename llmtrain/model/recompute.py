"""Selective activation checkpointing: what is dear is kept, what is cheap is computed again.

Of what a block computes, results of its matrix products and of fused attention are kept; norms, activations,
dropout, rotations and casts are computed again in the backward pass (Korthikanti et al. 2022, the opposite
choice: there attention, which was not fused, was computed again).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llmtrain.model.assembled import Assembled

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default)
"""Operations of linear layers. Batched products are left out: they are the scores of attention that is not
fused, which are most of what it makes."""

ATTENTION = (
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    ATEN._scaled_dot_product_flash_attention.default,
    ATEN._scaled_dot_product_efficient_attention.default,
    ATEN._scaled_dot_product_cudnn_attention.default,
)
"""Fused attention."""


def keep_products(model: Assembled) -> None:
    """Let each block keep products only; before blocks are compiled, so that the compiler is told."""
    for block in model.backbone.blocks.values():
        block.forward = partial(_forward, block.forward)


def _forward(forward: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A forward pass of a block."""
    if not torch.is_grad_enabled():
        return forward(*arguments)
    contexts = partial(create_selective_checkpoint_contexts, policy)
    result: Tensor = checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts)
    return result


def policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    """Whether the result of an operation is kept; see `create_selective_checkpoint_contexts`."""
    kept = operation in PRODUCTS or (operation in ATTENTION and not drops(operation, arguments, named))
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def drops(operation: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether attention draws random numbers. If it were left out of the second pass, what draws behind it
    would draw others than in the first."""
    names = [one.name for one in operation._schema.arguments]
    given = dict(zip(names, arguments, strict=False)) | named
    return bool(given.get("dropout_p", 0.0) > 0)
