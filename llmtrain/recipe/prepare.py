"""`llmtrain prepare`: make the token store that training reads, and look into it."""

from __future__ import annotations

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from llmtrain.data.fill import ROUND_TRIP
from llmtrain.data.inspect import inspect_tokenizer
from llmtrain.data.report import PrepareReport
from llmtrain.data.show import render_rows
from llmtrain.objective.build import build_objective
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import mixture_lines, open_data, training_rows
from llmtrain.recipe.resolve import total_steps
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.roots import PrepareConfig

BAR = 40
"""Columns of the longest bar."""


def prepare_data(config: PrepareConfig, context: Context) -> int:
    """Prepare, print the report, and `show` the tokenizer and packed rows if asked to."""
    prepared = open_data(config.data, config.tokenizer, config.run.seed, context)
    report = prepared.report
    console = make_console()
    console.print(report_table(report))
    for name, source in (report.sources or {"": report}).items():
        if name:
            console.print(f"\n{name}: {source.path}", style="bold", markup=False, soft_wrap=True)
            console.print(report_table(source, short=True))
        show_cleaning(console, source)
        console.print(lengths_table(source))
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if config.show or report.sources:
        objective = build_objective(config.objective, config.data, context.builders)
        rows = training_rows(objective, prepared, config.train.sequence_length, config.run.seed)
        steps = total_steps(config.train, rows.rows_per_epoch)
        for line in mixture_lines(rows, steps, config.train.batch_size):
            console.print(line, markup=False)
    if config.show:
        wrap = not console.is_terminal
        console.print(f"\n{inspect_tokenizer(prepared.tokenizer)}\n", markup=False, soft_wrap=wrap)
        text = render_rows(prepared.tokenizer, rows, config.show)
        console.print(text, markup=False, soft_wrap=wrap)
    return 0


def report_table(report: PrepareReport, short: bool = False) -> Table:
    """What came out, one line each."""
    table = Table(box=None, show_header=False)
    seconds = "found prepared" if report.cached else f"{report.seconds:.1f} s"
    rows = {
        "documents": f"{report.documents:,}" + (f" of {report.read:,}" * (report.read > report.documents)),
        "text": f"{report.bytes:,} bytes",
        "tokens": f"{report.tokens:,} ({report.bytes_per_token:.2f} bytes each)",
        "train / validation": f"{report.train_tokens:,} / {report.validation_tokens:,} tokens",
        "time": seconds,
    }
    if report.round_trip is not None and (report.round_trip < 1 or not short):
        rows["round trip"] = f"{100 * report.round_trip:.4g} % of the first documents come back exactly"
    if not short:
        rows["vocabulary"] = f"{report.vocab_size:,}"
        rows["store"] = report.path or "one for each source"
    if report.bad_rows:
        rows["bad rows"] = f"{report.skipped:,}, in {report.bad_rows}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def show_cleaning(console: Console, report: PrepareReport) -> None:
    """What cleaning removed and changed, the most frequent first, with examples."""
    for title, counts in (("removed", report.removed), ("changed", report.changed)):
        for rule, number in sorted(counts.items(), key=lambda item: -item[1]):
            share = f" ({100 * number / report.read:.2g} % of the documents)" if title == "removed" else ""
            console.print(f"{title} by {rule}: {number:,}{share}", markup=False)
            for example in report.examples.get(rule, [])[:2]:
                console.print(f"    {example}", style="dim", markup=False, soft_wrap=True)
    for example in report.examples.get(ROUND_TRIP, [])[:1]:
        console.print(f"not the same after the round trip: {example}", markup=False, soft_wrap=True)


def lengths_table(report: PrepareReport) -> Table:
    """How many documents there are of each length."""
    table = Table(
        box=None, pad_edge=False, title="tokens in a document", title_justify="left", title_style=""
    )
    for _ in range(3):
        table.add_column(justify="right")
    table.show_header = False
    most = max(report.lengths.values(), default=1)
    for shortest, number in sorted(report.lengths.items()):
        bar = Bar(most, 0, number, width=BAR)
        table.add_row(f"{shortest:,} to {2 * shortest - 1:,}", f"{number:,}", bar)
    return table
