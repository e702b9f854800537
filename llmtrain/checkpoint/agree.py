"""Doing a thing in several processes so that all of them know how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import ProcessGroup

from llmtrain.utils import dist, errors
from llmtrain.utils.errors import UserError


def gather_json(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """Everybody's value (anything that JSON can hold), by rank, for every process.

    Args:
        value: of this process.
        group: of all processes; another one than usual where a thread beside the main one asks.
    """
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = dist.gather(torch.tensor([len(text)]), group)[:, 0].tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(text)] = text
    rows = dist.gather(padded, group)
    return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _describe(error: BaseException) -> dict[str, str]:
    """An error as plain data, so that no pickle has to travel."""
    if isinstance(error, UserError):
        problem = error.problems[0]
        return {
            "type": type(error).__name__,
            "what": problem.what,
            "where": problem.where,
            "fix": problem.fix,
        }
    return {"type": "", "what": f"{type(error).__name__}: {error}"}


def _rebuild(rank: int, description: dict[str, str]) -> Exception:
    """The error of another process."""
    kind = getattr(errors, description["type"], None) if description["type"] else None
    if kind is None:
        return RuntimeError(f"rank {rank} failed: {description['what']}")
    error: Exception = kind(description["what"], description["where"], description["fix"])
    return error


def together(action: Callable[[], Any], group: ProcessGroup | None = None) -> list[Any]:
    """Run `action` in every process; collective.

    Returns:
        what it returned (anything that JSON can hold), by rank.

    Raises:
        Exception: in every process if it failed in one; the first rank's error wins.
    """
    mine: Exception | None = None
    answer: dict[str, Any] = {}
    try:
        answer["value"] = action()
    except Exception as error:
        mine, answer["error"] = error, _describe(error)
    answers = gather_json(answer, group)
    for rank, other in enumerate(answers):
        if "error" in other:
            raise (
                mine if mine is not None and rank == dist.rank() else _rebuild(rank, other["error"])
            ) from mine
    return [other["value"] for other in answers]


def on_rank_0(action: Callable[[], Any], group: ProcessGroup | None = None) -> Any:
    """Run `action` in rank 0 only and give its result, or its error, to every process; collective."""
    return together(lambda: action() if dist.rank() == 0 else None, group)[0]
