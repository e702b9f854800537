"""From logits to the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from llmtrain.schema.fields import SampleConfig


def next_token_probabilities(logits_BV: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities after temperature, top-k and top-p, in this order (as Hugging Face applies them).

    Args:
        logits_BV: scores of the next token.
        config: temperature (0 puts everything on the likeliest token), top_k, top_p.

    Returns:
        (B, V), fp64, rows add up to 1.
    """
    logits_BV = logits_BV.cpu()  # fp64 is not on every device
    if config.temperature == 0:
        return torch.nn.functional.one_hot(logits_BV.argmax(dim=-1), logits_BV.shape[-1]).double()
    scaled = logits_BV.double() / config.temperature
    if config.top_k is not None and config.top_k < scaled.shape[-1]:
        kth = scaled.topk(config.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    if config.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token stays if those before it do not reach top_p yet, so the likeliest always stays.
        before = ordered.cumsum(dim=-1) - ordered
        kept = torch.zeros_like(probabilities).scatter(-1, order, ordered * (before < config.top_p))
        probabilities = kept / kept.sum(dim=-1, keepdim=True)
    return probabilities


def draw(probabilities_BV: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One token for each row, from the row's own generator, so that a sample does not depend on how many
    others are drawn beside it. Returns (B,) int64."""
    uniform = torch.tensor([torch.rand((), generator=g, dtype=torch.float64).item() for g in generators])
    cumulative = probabilities_BV.cumsum(dim=-1)
    # Scaling by the last sum keeps rounding from pushing a draw beyond the last possible token.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=cumulative.shape[-1] - 1)
