"""Where reports go: files and the terminal. Only rank 0 has sinks."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmtrain.metrics.history import NORMS, VALIDATION
from llmtrain.metrics.summary import format_duration
from llmtrain.utils.io import atomic_write, explain_full_disk, read_json_lines

Record = dict[str, Any]


class Sink(Protocol):
    """Takes reports of numbers and notes of events."""

    def metrics(self, record: Record) -> None:
        """Numbers of a step: `kind` is train, validation or norms."""

    def event(self, record: Record) -> None:
        """Something that happened: `event` names it, `text` says it in words."""

    def close(self) -> None:
        """No more reports will come."""


class JsonLines:
    """Appends to `metrics.jsonl` and `events.jsonl`; each line is written at once.

    Args:
        metrics_path: numbers; lines beyond `last_step` are cut off, since the run goes on from there.
        events_path: the history of the run; it is never cut.
        last_step: step that the run continues from.
        evaluation_due: whether the evaluation at that step comes again.
    """

    def __init__(
        self, metrics_path: Path, events_path: Path, last_step: int, evaluation_due: bool = False
    ) -> None:
        again = ("validation", last_step) if evaluation_due else None
        kept = [
            record
            for record in read_json_lines(metrics_path)
            if record["step"] <= last_step and (record["kind"], record["step"]) != again
        ]
        atomic_write(metrics_path, "".join(json.dumps(record) + "\n" for record in kept))
        self.paths = {"metrics": metrics_path, "events": events_path}
        with contextlib.ExitStack() as stack:
            self.files = {name: stack.enter_context(open(path, "a")) for name, path in self.paths.items()}
            self.stack = stack.pop_all()
        if events_path.stat().st_size and not events_path.read_bytes().endswith(b"\n"):
            self.files["events"].write("\n")  # a kill cut the last line short

    def metrics(self, record: Record) -> None:
        self._append("metrics", record)

    def event(self, record: Record) -> None:
        self._append("events", {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record})

    def _append(self, name: str, record: Record) -> None:
        with explain_full_disk(self.paths[name]):
            self.files[name].write(json.dumps(finite(record)) + "\n")
            self.files[name].flush()

    def close(self) -> None:
        self.stack.close()


def finite(record: Record) -> Record:
    """The record with null in place of numbers that JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }


def format_number(name: str, value: Any) -> str:
    """A number as people like to read it."""
    if not isinstance(value, float | int) or isinstance(value, bool):
        return str(value)
    if name in ("mfu", "data_wait", "real_tokens"):
        return f"{100 * value:.1f}%"
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f}GB"
    if name in ("tokens_per_second",):
        return f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if name == "tokens" else str(value)
    return f"{value:.3e}" if name == "learning_rate" else f"{value:.4f}"


SHORT_NAMES = {
    "learning_rate": "lr",
    "gradient_norm": "grad",
    "tokens_per_second": "tok/s",
    "memory_bytes": "mem",
    "data_wait": "wait",
    "real_tokens": "real",
    "validation_loss": "val",
}
"""How columns are called where space is scarce."""


def short_name(name: str) -> str:
    """How a number is called on the terminal; what stands behind `val` is of the validation too."""
    return SHORT_NAMES.get(name) or name.removeprefix("validation_")


def say(text: str) -> None:
    """Print a line. Where nobody listens any more (`| head`) the run goes on in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleLines:
    """One `key=value` line per report: for files, pipes and batch systems."""

    def metrics(self, record: Record) -> None:
        if record["kind"] == NORMS:
            return  # for files and curves: too many for a line
        shown = [
            f"{short_name(name)}={format_number(name, value)}"
            for name, value in record.items()
            if name not in ("kind", "seconds", "eta_seconds", "total_steps", "tokens")
        ]
        if "eta_seconds" in record:
            shown.append(f"eta={format_duration(record['eta_seconds'])}")
        say(" ".join(shown))

    def event(self, record: Record) -> None:
        if record.get("text"):
            say(record["text"])

    def close(self) -> None:
        """Nothing to close."""


class LivePanel:
    """One panel that is drawn anew, for terminals; events scroll above it.

    Args:
        title: stands above it.
        metric: score of the validation that is shown beside its loss.
    """

    def __init__(self, title: str, metric: str = "loss") -> None:
        self.title = title
        self.metric = f"validation_{metric}"
        self.latest: Record = {}
        self.validation: Record = {}
        self.losses: list[float] = []
        self.live = Live(console=Console(), refresh_per_second=4, transient=False)
        self.started = False

    def metrics(self, record: Record) -> None:
        if record["kind"] == "train":
            self.latest = record
            self.losses += [record["loss"]] if math.isfinite(record["loss"]) else []
        elif record["kind"] == VALIDATION:
            self.validation = record
        if not self.started:
            self.live.start()
            self.started = True
        self.live.update(self._draw())

    def event(self, record: Record) -> None:
        if record.get("text"):
            self.live.console.print(Text(record["text"], style="dim"))

    def close(self) -> None:
        if self.started:
            self.live.stop()
            self.started = False

    def _draw(self) -> Table:
        latest = self.latest
        step, total = latest.get("step", 0), latest.get("total_steps", 0)
        table = Table(title=self.title, title_justify="left", title_style="bold", box=None, show_header=False)
        left = Text.assemble(("step ", "dim"), f"{step:,} / {total:,}")
        eta = Text.assemble(("left ", "dim"), format_duration(latest.get("eta_seconds", 0)))
        table.add_row(left, ProgressBar(total=max(total, 1), completed=step, width=36), eta)
        cells = [
            self._cell("loss", latest),
            Text(sparkline(self.losses, 36), style="cyan"),
            self._cell("validation_loss", self.validation),
        ]
        table.add_row(*cells)
        names = [
            ("learning_rate", "gradient_norm", "tokens_per_second"),
            ("mfu", "memory_bytes", "data_wait"),
        ]
        for row in names:
            table.add_row(*(self._cell(name, latest) for name in row))
        score = Text() if self.metric == "validation_loss" else self._cell(self.metric, self.validation)
        table.add_row(self._cell("real_tokens", latest), "", score)
        return table

    @staticmethod
    def _cell(name: str, record: Record) -> Text:
        value = format_number(name, record[name]) if name in record else "-"
        return Text.assemble((f"{short_name(name)} ", "dim"), value)


def sparkline(values: list[float], width: int) -> str:
    """The course of some numbers in one line of block characters."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        parts = itertools.pairwise(edges)
        values = [sum(values[a:b]) / (b - a) for a, b in parts]
    if not values:
        return ""
    low, high = min(values), max(values)
    blocks = "▁▂▃▄▅▆▇█"
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] for value in values)
