"""Evaluation on a set of rows: exact, whatever the batch size and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled
from llmtrain.objective.build import Objective
from llmtrain.utils import dist


@torch.inference_mode()
def evaluate(
    model: Assembled,
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Statistics over all labels in the batches of all processes. Collective.

    Sums of each batch are fp32; they are added up in fp64, and divided once, at the end.

    Args:
        model: bare, not wrapped for a layout.
        objective: counts labels and weighs sums.
        batches: of this process; every process has the same number.
        device: of the model.
        autocast: context of the forward pass.
        stopped: asked before each batch; has to answer the same in every process.

    Returns:
        the objective's statistics (`loss` among them), and the counts that they were divided by; None
        where it was stopped.
    """
    was_training = model.training
    model.eval()
    sums: list[dict[str, torch.Tensor]] = []
    counts: dict[str, int] = {}
    for batch in batches:
        if stopped():
            model.train(was_training)
            return None
        for name, count in objective.count(batch).items():
            counts[name] = counts.get(name, 0) + count
        with autocast():
            sums.append(model(batch.to(device)))
    model.train(was_training)
    names = list(sums[0])
    local = torch.stack([torch.stack([part[name].float() for name in names]) for part in sums])
    totals = dist.gather(local.cpu().double().sum(dim=0)).sum(dim=0)
    all_counts = dict(zip(counts, dist.sum_over_ranks(list(counts.values())), strict=True))
    divisors = {name: count or math.nan for name, count in all_counts.items()}  # no label, no number
    _, stats = objective.loss(dict(zip(names, totals, strict=True)), divisors)
    return {name: float(value) for name, value in stats.items()}, all_counts
