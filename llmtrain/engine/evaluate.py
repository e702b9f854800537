"""Evaluation on a set of rows: exact, whatever the batch size and the number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmtrain.data.batch import Batch
from llmtrain.model.assembled import Output
from llmtrain.objective.build import Objective
from llmtrain.parallel.layout import Layout
from llmtrain.parallel.mesh import Mesh
from llmtrain.utils import dist


@dataclass
class Measured:
    """What a pass over the batches of all processes gave.

    Attributes:
        stats: the objective's statistics, `loss` among them.
        counts: what they were divided by.
        sums: what was divided: those of several passes can be added up, as can their counts.
        outputs: (rows, W) fp32, in the order of the rows, fillers included; None where not asked for.
    """

    stats: dict[str, float]
    counts: dict[str, float]
    sums: dict[str, Tensor]
    outputs: np.ndarray | None


def evaluate(
    layout: Layout,
    objective: Objective,
    batches: Iterable[Batch],
    stopped: Callable[[], bool] = lambda: False,
    output: Output | None = None,
) -> Measured | None:
    """Statistics over all labels in the batches of all processes. Collective.

    Sums of each batch are fp32; they are added up in fp64, and divided once, at the end.

    Args:
        layout: runs the model.
        objective: counts labels and weighs sums.
        batches: of this process, as `evaluation_batches` shares them out; every process has the same number.
        stopped: asked before each batch; has to answer the same in every process.
        output: what to keep of the head's predictions for each row, (B, W).

    Returns:
        None where it was stopped.
    """
    model = layout.model
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
        found, kept = layout.measure(batch, output)
        sums.append(found)
        if kept is not None:
            outputs.append(kept)
    model.train(was_training)
    names = list(sums[0])
    local = torch.stack([torch.stack([part[name].float() for name in names]) for part in sums])
    totals = dist.gather(local.cpu().double().sum(dim=0)).sum(dim=0)
    num_alike = layout.mesh.num_alike  # processes that see the same rows count the same labels
    all_counts = {
        name: count / num_alike
        for name, count in zip(counts, dist.sum_over_ranks(list(counts.values())), strict=True)
    }
    all_sums = dict(zip(names, totals, strict=True))
    collected = collect(outputs, layout.mesh) if output is not None else None
    return Measured(divide(objective, all_sums, all_counts), all_counts, all_sums, collected)


def divide(objective: Objective, sums: dict[str, Tensor], counts: dict[str, float]) -> dict[str, float]:
    """Statistics of sums over all labels and of their counts."""
    divisors = {name: count or math.nan for name, count in counts.items()}  # no label, no number
    _, stats = objective.loss(sums, divisors)
    return {name: float(value) for name, value in stats.items()}


def merge(objective: Objective, parts: Mapping[str, Measured]) -> tuple[dict[str, float], dict[str, float]]:
    """Statistics and counts over several texts together, each label counting the same, and, where there is
    more than one text, those of each with its name in front: `books_loss`.

    Args:
        objective: weighs sums.
        parts: what each text gave, by name.
    """
    first, *others = parts.values()
    sums, counts = dict(first.sums), dict(first.counts)
    for part in others:
        sums = {name: value + part.sums[name] for name, value in sums.items()}
        counts = {name: count + part.counts[name] for name, count in counts.items()}
    stats = divide(objective, sums, counts)
    if others:
        for text, part in parts.items():
            stats |= {f"{text}_{name}": value for name, value in part.stats.items()}
            counts |= {f"{text}_{name}": count for name, count in part.counts.items()}
    return stats, counts


def collect(outputs: list[Tensor], mesh: Mesh) -> np.ndarray:
    """Outputs of the batches of all processes, in the order of the rows. Collective.

    Args:
        outputs: (B, W) of each batch of this process, in the leaders of the mesh; batch i of share k has the
            rows from (i x shares + k) x B on.
        mesh: the processes.

    Returns:
        (rows, W)
    """
    leads = mesh.rank in mesh.leaders
    local_NBW = torch.stack([part.float().cpu() for part in outputs]) if leads else torch.empty(0)
    shape = dist.broadcast_json(list(local_NBW.shape), mesh.leaders[0])
    every_RNBW = dist.gather(local_NBW if leads else torch.zeros(shape))[mesh.leaders]
    return every_RNBW.transpose(0, 1).flatten(0, 2).numpy()
