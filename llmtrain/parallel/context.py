"""Context parallel: the tokens of a row are shared out, and attention shares out heads instead.

Jacobs et al. 2023, "DeepSpeed Ulysses": before attention each process gives away its tokens of other
processes' heads and gets all tokens of its own; afterwards the same way back. Attention itself is left as
it is, so that masks of documents, windows and every kernel work as on one process, and a causal mask gives
all processes the same work.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single_autograd

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.assembled import Assembled
from llmtrain.model.layers.attention import AttentionCore


def share_tokens(model: Assembled, group: torch_dist.ProcessGroup) -> None:
    """Let every attention layer exchange tokens for heads within a group."""

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return *tokens_for_heads(inputs[:3], group), *inputs[3:]

    def give(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return heads_for_tokens(output, group)

    model.backbone.token_shares = group.size()
    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.register_forward_pre_hook(take)
            module.register_forward_hook(give)


def tokens_for_heads(parts: tuple[Tensor, ...], group: torch_dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Queries, keys and values: all heads of the own tokens -> all tokens of the own heads, in one message.

    Args:
        parts: each (B, H, T / size, K) with a number of heads of its own that is a multiple of the size.
        group: processes; their tokens follow each other in the order of ranks.

    Returns:
        each (B, H / size, T, K).
    """
    size = group.size()
    # (size, B, heads, T / size, K): first the receiver, afterwards the sender
    split = [part.unflatten(1, (size, -1)).movedim(1, 0) for part in parts]
    received = exchange(torch.cat(split, dim=2), group)
    heads = [part.shape[2] for part in split]
    return tuple(part.movedim(0, 2).flatten(2, 3) for part in received.split(heads, dim=2))


def heads_for_tokens(y_BHTK: Tensor, group: torch_dist.ProcessGroup) -> Tensor:
    """The way back: (B, H / size, T, K) -> (B, H, T / size, K)."""
    split = y_BHTK.unflatten(2, (group.size(), -1)).movedim(2, 0)
    return exchange(split, group).movedim(0, 1).flatten(1, 2)


def exchange(parts: Tensor, group: torch_dist.ProcessGroup) -> Tensor:
    """Entry i of the first dimension goes to process i; what comes back is from process i."""
    received: Tensor = all_to_all_single_autograd(parts.contiguous(), None, None, group)
    return received


def own_tokens(batch: Batch, size: int, number: int) -> Batch:
    """A batch with a share of the tokens of each row.

    Documents stay those of all tokens, since attention sees all; labels of other processes' tokens are
    left out.

    Args:
        batch: whole rows.
        size: shares.
        number: of the own one.
    """
    length = batch.ids.shape[1] // size
    start = number * length
    own = slice(start, start + length)
    positions = batch.positions
    if positions is None:
        positions = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    labels, selected, first, sample_labels = batch.labels, batch.selected, batch.first, batch.sample_labels
    if labels is not None and selected is None:
        labels = labels[:, own]
    elif labels is not None and selected is not None:
        selected, labels = _own_places(selected, labels, start, length)
    if first is not None and sample_labels is not None:
        first, sample_labels = _own_places(first, sample_labels, start, length)
    return Batch(
        ids=batch.ids[:, own],
        labels=labels,
        selected=selected,
        positions=positions[:, own],
        documents=batch.documents,
        segments=None if batch.segments is None else batch.segments[:, own],
        first=first,
        sample_labels=sample_labels,
    )


def _own_places(places: Tensor, labels: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    """Places in the row as places in the share; the labels of those outside are ignored."""
    own = (places >= start) & (places < start + length)
    inside = own if labels.ndim == own.ndim else own[..., None]
    return (places - start).where(own, 0), labels.where(inside, IGNORE)
