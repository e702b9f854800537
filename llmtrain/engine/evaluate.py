"""Evaluation on a set of rows: exact, whatever the batch size and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Assembled
from llmtrain.objective.build import Objective
from llmtrain.utils import dist


@dataclass
class Measured:
    """What a pass over the batches of all processes gave.

    Attributes:
        stats: the objective's statistics, `loss` among them.
        counts: what they were divided by.
        outputs: (rows, W) fp32, in the order of the rows, fillers included; None where not asked for.
    """

    stats: dict[str, float]
    counts: dict[str, float]
    outputs: np.ndarray | None


@torch.inference_mode()
def evaluate(
    model: Assembled,
    objective: Objective,
    batches: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    stopped: Callable[[], bool] = lambda: False,
    output: Callable[[Tensor, Batch], Tensor] | None = None,
) -> Measured | None:
    """Statistics over all labels in the batches of all processes. Collective.

    Sums of each batch are fp32; they are added up in fp64, and divided once, at the end.

    Args:
        model: bare, not wrapped for a layout.
        objective: counts labels and weighs sums.
        batches: of this process, as `evaluation_batches` shares them out; every process has the same number.
        device: of the model.
        autocast: context of the forward pass.
        stopped: asked before each batch; has to answer the same in every process.
        output: what to keep of the head's predictions for each row, (B, W).

    Returns:
        None where it was stopped.
    """
    was_training = model.training
    model.eval()
    sums: list[dict[str, Tensor]] = []
    counts: dict[str, float] = {}
    outputs: list[Tensor] = []
    for batch in batches:
        if stopped():
            model.train(was_training)
            return None
        for name, count in objective.count(batch).items():
            counts[name] = counts.get(name, 0) + count
        batch = batch.to(device)
        with autocast():
            hidden_BTD = model.hidden(batch)
            sums.append(model.head(hidden_BTD, batch))
            if output is not None:
                outputs.append(output(model.head.predict(hidden_BTD, batch), batch))
    model.train(was_training)
    names = list(sums[0])
    local = torch.stack([torch.stack([part[name].float() for name in names]) for part in sums])
    totals = dist.gather(local.cpu().double().sum(dim=0)).sum(dim=0)
    all_counts = dict(zip(counts, dist.sum_over_ranks(list(counts.values())), strict=True))
    divisors = {name: count or math.nan for name, count in all_counts.items()}  # no label, no number
    _, stats = objective.loss(dict(zip(names, totals, strict=True)), divisors)
    return Measured(
        {name: float(value) for name, value in stats.items()},
        all_counts,
        collect(outputs) if output is not None else None,
    )


def collect(outputs: list[Tensor]) -> np.ndarray:
    """Outputs of the batches of all processes, in the order of the rows. Collective.

    Args:
        outputs: (B, W) of each batch of this process; batch i of rank k has the rows from
            (i x world + k) x B on.

    Returns:
        (rows, W)
    """
    local_NBW = torch.stack([part.float().cpu() for part in outputs])
    every_RNBW = dist.gather(local_NBW)
    return every_RNBW.transpose(0, 1).flatten(0, 2).numpy()
