"""What a layout sends: counted, and by the formulas of docs/layouts.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.schema.parallel import Degrees, ParallelConfig, Reshard

KINDS = {
    "_allgather_base_": "all-gather",
    "allgather_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "all_to_all_single": "all-to-all",
    "send": "send",
    "recv_": "receive",
    "broadcast_": "broadcast",
}
"""Kinds of messages, by the names of torch's operations."""

NO_MESSAGES = {"_wrap_tensor_autograd", "wait_tensor"}


class MessageCounter(TorchDispatchMode):
    """Counts the messages of this process by kind. (torch's CommDebugMode does not see sends.)"""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(one is DTensor for one in types):
            return NotImplemented  # it comes back as operations on shares, and messages
        if func.namespace in ("c10d", "_c10d_functional", "_c10d_functional_autograd"):
            name = func._overloadpacket.__name__
            if name not in NO_MESSAGES:
                self.counts[KINDS[name]] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Row:
    """Messages that a layout makes necessary.

    Attributes:
        layout: in words.
        when: whether they are sent, given degrees and settings.
        kind: of message.
        step: how many in a training step, a formula.
        batch: how many in an evaluation batch, a formula.
        content: what they carry.
    """

    layout: str
    when: Callable[[Degrees, ParallelConfig], bool]
    kind: str
    step: str
    batch: str
    content: str


def _shards(degrees: Degrees) -> bool:
    return degrees.dp_shard * degrees.cp > 1


def _keeps(degrees: Degrees, config: ParallelConfig) -> bool:
    return config.reshard is Reshard.never or (config.reshard is Reshard.auto and degrees.pp > 1)


ROWS: list[Row] = [
    Row("any", lambda d, c: d.world > 1, "all-reduce", "1", "0", "label counts and requests to stop (CPU)"),
    Row(
        "`dp_replicate` alone (DDP)",
        lambda d, c: d.replicates_only,
        "all-reduce",
        "1",
        "0",
        "gradients, one for each 25 MB",
    ),
    Row(
        "`dp_shard` or `cp`; `reshard` never, in a pipeline also auto",
        lambda d, c: _shards(d) and _keeps(d, c),
        "all-gather",
        "L + S",
        "L + S",
        "weights of a block; of all the rest of a stage",
    ),
    Row(
        "`dp_shard` or `cp`, no pipeline; `reshard` auto or always",
        lambda d, c: _shards(d) and not _keeps(d, c) and d.pp == 1,
        "all-gather",
        "2*L*M + 1",
        "L + 1",
        "the same",
    ),
    Row(
        "`dp_shard` or `cp`, `pp` (1f1b, gpipe); `reshard` always",
        lambda d, c: _shards(d) and not _keeps(d, c) and d.pp > 1,
        "all-gather",
        "L*(M + 1) + 1",
        "L + 1",
        "the same",
    ),
    Row(
        "`dp_shard` or `cp`",
        lambda d, c: _shards(d),
        "reduce-scatter",
        "L + S",
        "0",
        "gradients of a block; of the rest",
    ),
    Row(
        "`dp_replicate` with any other",
        lambda d, c: d.dp_replicate > 1 and not d.replicates_only,
        "all-reduce",
        "L + S",
        "0",
        "this share of these gradients",
    ),
    Row(
        "`dp_shard`, `cp` or `tp`",
        lambda d, c: _shards(d) or d.tp > 1,
        "all-reduce",
        "1",
        "0",
        "gradient norm",
    ),
    Row(
        "`tp`",
        lambda d, c: d.tp > 1,
        "all-gather",
        "(4*L + first + last)*M",
        "2*L + last",
        "tokens of a microbatch, B T D",
    ),
    Row(
        "`tp`",
        lambda d, c: d.tp > 1,
        "reduce-scatter",
        "(4*L + first)*M",
        "2*L + first",
        "tokens of a microbatch, B T D",
    ),
    Row(
        "`tp`, language model",
        lambda d, c: d.tp > 1,
        "all-reduce",
        "(3 + correct)*last*M",
        "(2 + correct)*last",
        "highest score, sums, gradient B T D at the labels; best token",
    ),
    Row(
        "`tp`",
        lambda d, c: d.tp > 1,
        "all-reduce",
        "W",
        "0",
        "gradient of a norm's weight or bias, of positions or segments",
    ),
    Row("`cp`", lambda d, c: d.cp > 1, "all-to-all", "4*L*M", "2*L", "queries, keys, values; results"),
    Row(
        "`pp`",
        lambda d, c: d.pp > 1,
        "send",
        "(2*S - first - last)*M",
        "S - last",
        "tokens of a microbatch, B T D",
    ),
    Row("`pp`", lambda d, c: d.pp > 1, "receive", "(2*S - first - last)*M", "S - first", "the same"),
    Row("`pp`", lambda d, c: d.pp > 1, "all-reduce", "1", "0", "gradient norm"),
    Row(
        "`pp`",
        lambda d, c: d.pp > 1,
        "all-reduce",
        "tied*(first or last)",
        "0",
        "gradient of a tied embedding",
    ),
]


def expected(degrees: Degrees, config: ParallelConfig, numbers: dict[str, int]) -> list[dict[str, int]]:
    """Messages by kind, of a training step and of an evaluation batch.

    Args:
        degrees: of parallelism.
        config: the rest of the layout.
        numbers: value of each letter and word in the formulas.
    """
    totals: list[Counter[str]] = [Counter(), Counter()]
    for row in ROWS:
        if row.when(degrees, config):
            for total, formula in zip(totals, (row.step, row.batch), strict=True):
                total[row.kind] += int(eval(formula, {}, numbers))
    return [{kind: count for kind, count in total.items() if count} for total in totals]


def table() -> str:
    """The formulas in Markdown."""
    lines = [
        "| layout | message | in a training step | in an evaluation batch | content |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        lines.append(f"| {row.layout} | {row.kind} | `{row.step}` | `{row.batch}` | {row.content} |")
    return "\n".join(lines)
