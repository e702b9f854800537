"""From scores of where an answer starts and ends to the answers themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.task.base import plain


@dataclass(frozen=True)
class Candidate:
    """A possible answer: characters `start` to `end` of the context, with the sum of its two logits."""

    text: str
    start: int
    end: int
    score: float


def best_spans(scores_BT2: Tensor, allowed_BT: Tensor, max_length: int, num_best: int) -> Tensor:
    """The best spans of each row, and the score of having none.

    All pairs of a start and an end at most `max_length` positions long are compared, not only those of
    the best starts with the best ends.

    Args:
        scores_BT2: logits of start and end at each position.
        allowed_BT: positions that may be in an answer; they stand side by side.
        max_length: positions of the longest span.
        num_best: k, spans of each row.

    Returns:
        (B, 1 + 3 k) fp32: start and end logit of the first position together; then k starts, k ends and
        k scores, best first. The score is -inf where a row has fewer spans.
    """
    start_BT, end_BT = scores_BT2.float().unbind(-1)
    none_B1 = start_BT[:, :1] + end_BT[:, :1]
    start_BT = start_BT.masked_fill(~allowed_BT, -torch.inf)
    end_BT = end_BT.masked_fill(~allowed_BT, -torch.inf)
    ends_BTL = F.pad(end_BT, (0, max_length - 1), value=-torch.inf).unfold(1, max_length, 1)
    pairs = (start_BT[..., None] + ends_BTL).flatten(1)
    pairs = F.pad(pairs, (0, max(0, num_best - pairs.shape[1])), value=-torch.inf)
    best, where = pairs.topk(num_best)
    starts = where // max_length
    return torch.cat([none_B1, starts.float(), (starts + where % max_length).float(), best], dim=1)


def candidates(
    windows: Sequence[tuple[np.ndarray, np.ndarray]], context: str, num_best: int
) -> list[Candidate]:
    """Different answers from all windows of a text, best first.

    Args:
        windows: for each, (k, 3) float starts, ends, scores of spans of its tokens, and (n, 2) int where
            its tokens stand in the context.
        context: the text.
        num_best: most answers.
    """
    spans = np.concatenate(
        [
            np.column_stack([offsets[of[:, 0].astype(int), 0], offsets[of[:, 1].astype(int), 1], of[:, 2]])
            for of, offsets in windows
            if len(of)
        ]
        or [np.zeros((0, 3))]
    )
    found: dict[str, Candidate] = {}
    for start, end, score in spans[np.argsort(-spans[:, 2], kind="stable")]:
        raw = context[int(start) : int(end)]
        text = raw.strip()
        if text and text not in found:
            begin = int(start) + len(raw) - len(raw.lstrip())
            found[text] = Candidate(text, begin, begin + len(text), float(score))
            if len(found) == num_best:
                break
    return list(found.values())


def softmax(scores: Sequence[float]) -> list[float]:
    """Probabilities of scores; none of none."""
    if not scores:
        return []
    powers = np.exp(np.array(scores) - max(scores))
    return [plain(power) for power in powers / powers.sum()]
