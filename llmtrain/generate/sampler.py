"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llmtrain.schema.fields import SampleConfig


def choose(
    logits_BV: Tensor,
    config: SampleConfig,
    seen: Sequence[Tensor | None],
    generators: Sequence[torch.Generator],
) -> list[int]:
    """The next token of each row.

    Args:
        logits_BV: scores.
        config: how tokens are drawn; at temperature 0 the likeliest is taken, and nothing is sorted.
        seen: of each row, (V,) bool, the tokens that stand in it already; wanted where the penalty is not 1.
        generators: of each row, so that what is drawn does not depend on the rows beside it.
    """
    if config.repetition_penalty != 1:
        known_BV = torch.stack([one for one in seen if one is not None])
        logits_BV = penalise(logits_BV.cpu().float(), known_BV, config.repetition_penalty)
    if config.temperature == 0:
        tokens = logits_BV.argmax(dim=-1)
    else:
        tokens = draw(next_token_probabilities(logits_BV, config), generators)
    ids: list[int] = tokens.tolist()
    return ids


def penalise(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make tokens that stand in the text already less likely (Keskar et al. 2019, "CTRL", section 4.1).

    Scores above 0 are divided by the penalty, those below multiplied, as Hugging Face does it.
    """
    lower_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, lower_BV, logits_BV)


def next_token_probabilities(logits_BV: Tensor, config: SampleConfig) -> Tensor:
    """Probabilities after temperature, top-k, top-p and min-p, in this order (as Hugging Face applies them).

    Args:
        logits_BV: scores of the next token.
        config: temperature above 0, top_k, top_p, min_p.

    Returns:
        (B, V), fp64 on the CPU, rows add up to 1.
    """
    scores_BV = logits_BV.cpu().float() / config.temperature  # fp64 is not on every device
    if config.top_k is not None and config.top_k < scores_BV.shape[-1]:
        kth = scores_BV.topk(config.top_k, dim=-1).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < kth, -math.inf)
    if config.top_p < 1:
        scores_BV = _nucleus(scores_BV, config.top_p)
    if config.min_p > 0:
        least = scores_BV.amax(dim=-1, keepdim=True) + math.log(config.min_p)
        scores_BV = scores_BV.masked_fill(scores_BV < least, -math.inf)
    return scores_BV.double().softmax(dim=-1)


def _nucleus(scores_BV: Tensor, top_p: float) -> Tensor:
    """Only the likeliest tokens that together reach a probability (Holtzman et al. 2020)."""
    left = int(scores_BV.isfinite().sum(dim=-1).max())
    ordered, order = scores_BV.topk(left, dim=-1)
    shares = ordered.double().softmax(dim=-1)
    # A token stays if those before it do not reach top_p yet, so the likeliest always stays.
    out = shares.cumsum(dim=-1) - shares >= top_p
    return scores_BV.scatter(-1, order, ordered.masked_fill(out, -math.inf))


def draw(probabilities_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token for each row, from the row's own generator, so that a sample does not depend on how many
    others are drawn beside it. Returns (B,) int64."""
    uniform = torch.tensor([torch.rand((), generator=g, dtype=torch.float64).item() for g in generators])
    cumulative = probabilities_BV.cumsum(dim=-1)
    # Scaling by the last sum keeps rounding from pushing a draw beyond the last possible token.
    target = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=cumulative.shape[-1] - 1)
