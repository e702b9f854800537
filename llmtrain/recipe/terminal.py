"""What a user sees of a run besides its numbers: progress of the preparation, the start, the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from llmtrain.data.prepare import Progress
from llmtrain.metrics.sinks import ConsoleLines, JsonLines, LivePanel, Sink
from llmtrain.metrics.summary import summary_rows, typed_path
from llmtrain.metrics.trackers import TensorBoard, WeightsAndBiases
from llmtrain.schema.fields import Panel
from llmtrain.schema.load import dump
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.roots import FinetuneConfig, TrainingConfig
from llmtrain.utils import dist
from llmtrain.utils.io import read_json_lines
from llmtrain.utils.machine import PLACEMENT
from llmtrain.utils.run_directory import RunDirectory


def is_terminal() -> bool:
    """Whether somebody watches: standard output is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "dumb")


def make_console() -> Console:
    """A console that does not break lines where nobody sees them as lines of a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


WIDE = 400
"""Columns of an output that is no terminal."""

QUIET_SECONDS = 5.0
"""Without a terminal the preparation speaks no more often than this."""

STAGES = {
    "tokenizer": "training the tokenizer on",
    "tokens": "tokenising",
    "waiting": "waiting for another process that prepares",
}


def describe_progress(progress: Progress) -> str:
    """One line about a preparation."""
    parts = [STAGES[progress.stage], progress.name]
    if progress.fraction is not None:
        parts.append(f"{100 * progress.fraction:.0f}%")
    if progress.text_bytes:
        parts.append(f"{progress.text_bytes / 1e6:,.1f} MB")
    if progress.tokens:
        parts.append(f"{progress.tokens:,} tokens")
    return " ".join(parts)


@contextmanager
def preparation_progress() -> Iterator[Callable[[Progress], None] | None]:
    """Shows how far a preparation is: a moving line on a terminal, a few lines elsewhere; rank 0 only."""
    if dist.rank() != 0:
        yield None
    elif is_terminal():
        with Console().status("reading data") as status:
            yield lambda progress: status.update(describe_progress(progress))
    else:
        told = time.monotonic()

        def tell(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told > QUIET_SECONDS:
                told = time.monotonic()
                print(describe_progress(progress), file=sys.stderr, flush=True)

        yield tell


def open_sinks(run: RunDirectory, config: TrainingConfig, state: dict[str, Any] | None) -> list[Sink]:
    """Files, cut back to where the saved state left off, and the terminal; on rank 0 only."""
    if dist.rank() != 0:
        return []
    step = state["train"]["step"] if state else 0
    files = JsonLines(run.metrics, run.events, step, bool(state and state["train"]["evaluation_due"]))
    live = config.log.panel is Panel.live or (config.log.panel is Panel.auto and is_terminal())
    metric = config.task.metric if isinstance(config, FinetuneConfig) else "loss"
    console: Sink = LivePanel(run.path.name, metric) if live else ConsoleLines()
    sinks: list[Sink] = [files, console]
    if config.log.tensorboard:
        sinks.append(TensorBoard(run.tensorboard, step, run.config.read_text(encoding="utf-8")))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(run.path, dump(config), read_json_lines(run.metrics)))
    return sinks


def announce(
    sinks: list[Sink],
    notes: list[dict[str, Any]],
    config: TrainingConfig,
    degrees: Degrees,
    data_line: str,
    weights: list[str],
    warnings: list[str],
    num_parameters: tuple[int, int],
    steps: int,
    state: dict[str, Any] | None,
) -> None:
    """Tell what is about to run, and whether it goes on from a checkpoint.

    Of the parameters it is told how many there are, and (where not all do) how many of them learn.
    """
    train = config.train
    total, learning = num_parameters
    learn = "" if learning == total else f", of which {learning:,} learn ({100 * learning / total:.2g} %)"
    same_bits = ", deterministic" if config.run.deterministic else ""
    lines = [
        f"data       {data_line}",
        f"model      {total:,} parameters{learn}, {config.precision.value}, compile {config.compile.value}"
        + same_bits,
        f"training   {steps:,} steps of {train.batch_size} x {train.sequence_length} tokens at most "
        + ("on one process" if degrees.world == 1 else f"on {degrees.world} processes ({degrees})"),
    ]
    if os.environ.get(PLACEMENT):
        lines.append(f"machine    {os.environ[PLACEMENT]}")
    if state:
        lines.append(f"resuming   from step {state['train']['step']:,}")
    if config.optim.ema:
        weights = [*weights, f"their moving average is evaluated (optim.ema={config.optim.ema:g})"]
    lines += [f"weights    {weight}" for weight in weights]
    lines += [f"warning    {warning}" for warning in warnings]
    for note in notes:
        reason = note.get("reason", "")
        text = f"warning: checkpoint of step {note.get('step')} was set aside: {reason}"
        for sink in sinks:
            sink.event({**note, "text": text})
    event = {"event": "resumed" if state else "started", "text": "\n".join(lines)}
    if state:
        event["step"] = state["train"]["step"]
    for sink in sinks:
        sink.event(event)


def print_summary(
    run: RunDirectory,
    summary: dict[str, Any],
    show_scores: Callable[[dict[str, Any]], None],
    next_commands: Callable[[str], list[str]],
    notes: list[str],
) -> None:
    """A table of what was reached, what the task shows besides, and what one may want to type next."""
    console = make_console()
    table = Table(box=None, show_header=False)
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    state = "finished" if summary["finished"] else "stopped, to be continued"
    console.print(f"\n{run.path}: {state}", style="bold", markup=False, soft_wrap=True)
    console.print(table)
    show_scores(summary)
    for note in notes:
        console.print(f" {note}", soft_wrap=True, markup=False, highlight=False)
    if summary["finished"]:
        length = f"a greater length (now {summary['total_steps']:,} steps)"
        more = "a greater eval.patience" if summary["ended_early"] else length
        commands = [*next_commands(typed_path(run.path)), f"the same command with {more} trains on"]
    else:
        commands = ["the same command goes on where this one stopped"]
    console.print("\nnext:", style="bold")
    for command in commands:
        console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)
